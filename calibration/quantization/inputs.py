"""Collects what the measurement of a quantized model needs: the unquantized model, texts, heads."""

import hashlib
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from medusa_trt.calibration.prompts import BenchPrompt
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
from medusa_trt.export.models.base_model import BaseModel, load_base_model
from medusa_trt.export.models.source import source_from_name
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.session import MedusaSession
from medusa_trt.runtime.tensors import GRAPH_FILES, WEIGHTS_FILE


def texts_from_records(
    session: MedusaSession,
    prompts: Sequence[BenchPrompt],
    records: Iterable[RankRecord],
) -> list[Text]:
    """Pairs each prompt with its recorded reply."""
    replies = {record.prompt_id: record for record in records}
    return [
        Text(
            tuple(encode_first_turn(session, prompt)),
            tuple(replies[prompt.id].token_ids),
        )
        for prompt in prompts
    ]


def load_unquantized_model(bundle: Bundle, name: str | None) -> BaseModel:
    """Loads the model that a bundle was made from, as float32.

    Args:
        bundle: the bundle.
        name: the model, as `medusa-export --model` takes it; None for the name in the manifest.

    Raises:
        CalibrationError: `name` is None, and the name in the manifest leads to no model.
        ExportError: the model cannot be loaded, or has other sizes than the bundle.
    """
    bundle_name = bundle.manifest.model.name
    try:
        source = source_from_name(name or bundle_name)
    except ExportError as error:
        if name is not None:
            raise
        raise CalibrationError(
            f"the bundle's model is called {bundle_name!r}, which is not an alias, a folder or a "
            "hub id: name the unquantized model with --model"
        ) from error
    base = load_base_model(source)
    check_same_sizes(bundle, base)
    return base


class HeadsMeter:
    """Measures the acceptance length that a bundle's heads and tree reach on given texts.

    Attributes:
        digest: digest of the heads and the tree.
    """

    def __init__(
        self, bundle: Bundle, texts: Sequence[Text], open_session: Callable[[], MedusaSession]
    ) -> None:
        """Hashes heads and tree; `open_session` is called when a session is first needed."""
        self._bundle, self._texts, self._open_session = bundle, texts, open_session
        self._session: MedusaSession | None = None
        digest = hashlib.sha256(repr(bundle.tree.medusa_choices).encode())
        for file in (GRAPH_FILES["heads"], WEIGHTS_FILE):
            if file in bundle.manifest.files:
                digest.update(bundle.manifest.files[file].sha256.encode())
        self.digest = digest.hexdigest()

    def measure_accept_length(self, hidden: Sequence[NDArray[np.float32]]) -> float:
        """Measures the mean number of tokens that a step adds to a reply; 1 without heads.

        Args:
            hidden: hidden states that the heads read, (n, hidden_size) float32 for each text.
        """
        heads = self._bundle.manifest.heads
        if heads is None:
            return 1.0
        if self._session is None:
            self._session = self._open_session()
        engine, ranks = self._session.engine, []
        for states, text in zip(hidden, self._texts, strict=True):
            # As in decoding, the heads read the state before the root, one row at a time.
            drafts = (
                engine.draft(row[None], [root]).ids[0]
                for row, root in zip(states[:-1], text.token_ids[:-1], strict=True)
            )
            ranks.append(ranks_from_drafts(drafts, text.token_ids, heads.num_heads))
        table = RankTable.from_replies(ranks)
        return mean_accept_length(table, replay(self._bundle.tree, table))

    def close(self) -> None:
        """Closes the session, if one was opened."""
        if self._session is not None:
            self._session.close()
