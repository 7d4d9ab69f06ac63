"""Medusa-1: heads on a frozen backbone (paper, section 2.2.1)."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from medusa_trt.errors import TrainingError
from medusa_trt.export.heads.medusa_heads import MedusaHeads, embedding_of
from medusa_trt.export.models.base_model import BaseModel
from medusa_trt.training.accuracy import Accuracy
from medusa_trt.training.backbone import unembedding_of
from medusa_trt.training.data.rows import (
    DraftVocabulary,
    LabelledTokens,
    ReplyRows,
    Split,
    TargetRule,
    rows_from_conversations,
)
from medusa_trt.training.data.shards import load_shards, read_spec
from medusa_trt.training.datasets import FeatureRows, PaddedConversations
from medusa_trt.training.held_out import accuracy_of, computed_pieces, kept_pieces
from medusa_trt.training.objectives import HeadsOnBackbone, HeadsOnFeatures
from medusa_trt.training.options import TrainOptions
from medusa_trt.training.ridge import Piece, ridge_maps
from medusa_trt.training.trainable_heads import TrainableHeads
from medusa_trt.training.trainer import run_trainer

_RIDGE_ROWS = 1 << 18
"""Rows that the first guess is fitted to: more change it little and take minutes."""


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What training made.

    Attributes:
        heads: the trained heads.
        accuracy: on held-out replies.
        log: of the Trainer, with a "step" in each entry.
        num_train_tokens: reply tokens trained on, each counted once.
        num_guess_tokens: reply tokens that the first guess of the linear maps was fitted to.
    """

    heads: MedusaHeads
    accuracy: Accuracy
    log: list[dict[str, float]]
    num_train_tokens: int
    num_guess_tokens: int = 0


def load_split(base: BaseModel, folders: Sequence[Path], held_out_fraction: float) -> Split:
    """Reads training data for a model, of one folder or several.

    Raises:
        TrainingError: there is none, it is not complete, it is of another model, or some folders
            hold hidden states and some do not.
    """
    specs, config = [read_spec(folder) for folder in folders], base.model.config
    expected = (base.source.name, config.hidden_size, config.vocab_size)
    for folder, spec in zip(folders, specs, strict=True):
        found = (spec.model, spec.hidden_size, spec.vocab_size)
        if found != expected:
            raise TrainingError(
                f"{folder} was made by {found[0]} (hidden size {found[1]}, {found[2]} tokens), not "
                f"by {expected[0]} ({expected[1]}, {expected[2]}): make data with the model to "
                "train for"
            )
        if spec.has_features != specs[0].has_features:
            raise TrainingError(
                f"only one of {folders[0]} and {folder} holds hidden states: train on either"
            )
    shards = [shard for folder in folders for shard in load_shards(folder)]
    return Split.from_shards(shards, held_out_fraction)


def train_heads(base: BaseModel, split: Split, folder: Path, options: TrainOptions) -> TrainResult:
    """Trains heads on a frozen backbone.

    Where the data holds hidden states the backbone never runs.

    Args:
        base: the backbone.
        split: of its own replies.
        folder: for checkpoints; a run that was ended continues from the last one.
        options: how.
    """
    torch.manual_seed(options.seed)
    heads = new_heads(base, split, options)
    if split.train[0].features is not None:
        return _train_on_features(heads, split, folder, options)
    return _train_on_backbone(base, heads, split, folder, options)


def new_heads(base: BaseModel, split: Split, options: TrainOptions) -> TrainableHeads:
    """Heads that have learnt nothing, with the draft vocabulary of the replies to train on."""
    unembedding = unembedding_of(base.model)
    vocab_size = len(unembedding)
    size = vocab_size if options.draft_vocab_size is None else options.draft_vocab_size
    rows = rows_from_conversations([without_features(c) for c in split.train])
    vocabulary = DraftVocabulary.most_frequent(rows, size, vocab_size)
    heads = TrainableHeads(options.shape, vocabulary, unembedding, embedding_of(base.model))
    return heads.to(base.model.device)


def without_features(conversation: LabelledTokens) -> LabelledTokens:
    """The same conversation, without the weight of its hidden states."""
    return LabelledTokens(conversation.token_ids, conversation.turns, None)


def _train_on_features(
    heads: TrainableHeads, split: Split, folder: Path, options: TrainOptions
) -> TrainResult:
    rows = rows_from_conversations(split.train)
    num_guess_tokens = _initialize(heads, kept_pieces(split.train), options)
    rule = TargetRule(
        num_heads=options.shape.num_heads,
        columns=heads.vocabulary.columns(),
        soft_weight=options.soft_weight,
    )
    run = run_trainer(
        HeadsOnFeatures(heads, options),
        [{"params": list(heads.parameters()), "lr": options.learning_rate}],
        FeatureRows(rows, rule),
        lambda: accuracy_of(heads, kept_pieces(split.held_out), options.num_nodes),
        folder,
        options,
        batch_size=options.batch_rows,
        num_epochs=options.num_epochs,
    )
    return TrainResult(heads.to_heads(), run.accuracy, run.log, run.num_rows, num_guess_tokens)


def _train_on_backbone(
    base: BaseModel, heads: TrainableHeads, split: Split, folder: Path, options: TrainOptions
) -> TrainResult:
    module = HeadsOnBackbone(base.model, heads, options)
    train = PaddedConversations(split.train, options.max_length)
    pieces = computed_pieces(module, train, options.batch_size)
    num_guess_tokens = _initialize(heads, pieces, options)
    run = run_trainer(
        module,
        [{"params": list(heads.parameters()), "lr": options.learning_rate}],
        train,
        measure_on_backbone(module, split, options),
        folder,
        options,
        batch_size=options.batch_size,
        num_epochs=options.num_epochs,
    )
    return TrainResult(heads.to_heads(), run.accuracy, run.log, run.num_rows, num_guess_tokens)


def measure_on_backbone(
    module: HeadsOnBackbone, split: Split, options: TrainOptions
) -> Callable[[], Accuracy]:
    """Measures the heads with the backbone as it is at that time."""
    held_out = PaddedConversations(split.held_out, options.max_length)

    def measure() -> Accuracy:
        pieces = computed_pieces(module, held_out, options.batch_size)
        return accuracy_of(module.heads, pieces, options.num_nodes)

    return measure


def _initialize(
    heads: TrainableHeads, found: Iterable[tuple[torch.Tensor, ReplyRows]], options: TrainOptions
) -> int:
    """Begins with the best linear guess, where the heads have a linear map.

    Returns:
        How many reply tokens it was fitted to.
    """
    if not (options.shape.has_root_map or options.shape.has_projection):
        return 0
    num_tokens = 0

    def pieces() -> Iterator[Piece]:
        nonlocal num_tokens
        for hidden, rows in _first(found, _RIDGE_ROWS):
            num_tokens += len(rows)
            inputs = heads.inputs(hidden.float(), rows.token_ids.to(hidden.device))
            yield inputs, hidden, rows.reply_ids.to(hidden.device)

    heads.set_linear_maps(ridge_maps(pieces(), options.shape.num_heads, options.ridge))
    return num_tokens


def _first(
    pieces: Iterable[tuple[torch.Tensor, ReplyRows]], num_rows: int
) -> Iterator[tuple[torch.Tensor, ReplyRows]]:
    """Whole pieces until there are so many rows."""
    for hidden, rows in pieces:
        if num_rows <= 0:
            return
        yield hidden, rows
        num_rows -= len(rows)
