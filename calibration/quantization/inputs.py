"""What a quantization is measured with: the unquantized model, texts, heads and tree."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from medusa_trt.calibration.calibrate_options import ReplySettings
from medusa_trt.calibration.prompts import BenchPrompt
from medusa_trt.calibration.quantization.costs import Drafter
from medusa_trt.calibration.quantization.meter import Text
from medusa_trt.calibration.replies import encode_first_turn
from medusa_trt.calibration.trees.head_ranks import RankRecord
from medusa_trt.calibration.trees.replay import (
    RankTable,
    mean_accept_length,
    ranks_from_drafts,
    replay,
)
from medusa_trt.errors import CalibrationError, ExportError
from medusa_trt.export.comparison.check import check_same_sizes
from medusa_trt.export.models.base_model import BaseModel, load_base_model, source_from_name
from medusa_trt.runtime.bundle import GRAPH_FILES, WEIGHTS_FILE, Bundle
from medusa_trt.runtime.session import MedusaSession


def texts_from_records(
    session: MedusaSession,
    prompts: Sequence[BenchPrompt],
    records: Iterable[RankRecord],
    settings: ReplySettings,
) -> list[Text]:
    """The prompts with their recorded replies to these settings, all of them."""
    replies = {record.prompt_id: record for record in records if record.settings == settings}
    return [
        Text(
            tuple(encode_first_turn(session, prompt)),
            tuple(replies[prompt.id].token_ids),
        )
        for prompt in prompts
    ]


def unquantized_model(bundle: Bundle, name: str | None) -> BaseModel:
    """Loads the model that a bundle was made from, as float32.

    Raises:
        CalibrationError: the bundle's own name for it does not lead to it.
        ExportError: it cannot be loaded, or has other sizes.
    """
    own = bundle.manifest.model.name
    try:
        source = source_from_name(name or own)
    except ExportError as error:
        if name is not None:
            raise
        raise CalibrationError(
            f"the bundle's model is called {own!r}, which is no alias, folder or hub id: name the "
            "unquantized model with --model"
        ) from error
    base = load_base_model(source)
    check_same_sizes(bundle, base)
    return base


@contextmanager
def drafter_of(
    bundle: Bundle, texts: Sequence[Text], opened: Callable[[], MedusaSession]
) -> Iterator[Drafter]:
    """The bundle's heads and tree on these texts; its engine is opened at the first use."""
    sessions: list[MedusaSession] = []

    def accept_length(hidden: Sequence[NDArray[np.float32]]) -> float:
        if not sessions:
            sessions.append(opened())
        engine, num_heads = sessions[0].engine, bundle.manifest.heads.num_heads
        ranks = []
        for states, text in zip(hidden, texts, strict=True):
            # The state before each root but the last, one row at a time, as a step drafts.
            drafts = (
                engine.draft(row[None], [root])[0]
                for row, root in zip(states[:-1], text.token_ids[:-1], strict=True)
            )
            ranks.append(ranks_from_drafts(drafts, text.token_ids, num_heads))
        table = RankTable.from_replies(ranks)
        return mean_accept_length(table, replay(bundle.tree, table).steps)

    digest = hashlib.sha256(repr(bundle.tree.medusa_choices).encode())
    for file in (GRAPH_FILES["heads"], WEIGHTS_FILE):
        digest.update(bundle.manifest.files[file].sha256.encode())
    try:
        yield Drafter(digest.hexdigest(), accept_length)
    finally:
        for session in sessions:
            session.close()
