"""Medusa-1: heads on a frozen backbone (paper, section 2.2.1)."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from medusa_trt.errors import TrainingError
from medusa_trt.export.base_model import BaseModel
from medusa_trt.export.heads import MedusaHeads
from medusa_trt.training.accuracy import Accuracy
from medusa_trt.training.backbone import unembedding_of
from medusa_trt.training.datasets import FeatureRows, PaddedConversations
from medusa_trt.training.heads_model import TrainableHeads
from medusa_trt.training.held_out import accuracy_of, computed_pieces, kept_pieces
from medusa_trt.training.modules import HeadsOnBackbone, HeadsOnFeatures
from medusa_trt.training.options import TrainOptions
from medusa_trt.training.ridge import Piece, ridge_projections
from medusa_trt.training.rows import (
    DraftVocabulary,
    LabelledTokens,
    Split,
    TargetRule,
    rows_from_conversations,
)
from medusa_trt.training.shards import load_shards, read_spec
from medusa_trt.training.trainer import run_trainer

_RIDGE_BATCHES = 200


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What training made.

    Attributes:
        heads: the trained heads.
        accuracy: on held-out replies.
        log: of the Trainer, with a "step" in each entry.
        num_train_tokens: reply tokens trained on, each counted once.
    """

    heads: MedusaHeads
    accuracy: Accuracy
    log: list[dict[str, float]]
    num_train_tokens: int


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
    return TrainableHeads(options.shape, vocabulary, unembedding).to(base.model.device)


def without_features(conversation: LabelledTokens) -> LabelledTokens:
    """The same conversation, without the weight of its hidden states."""
    return LabelledTokens(conversation.token_ids, conversation.turns, None)


def _train_on_features(
    heads: TrainableHeads, split: Split, folder: Path, options: TrainOptions
) -> TrainResult:
    rows = rows_from_conversations(split.train)
    if options.shape.has_projection:
        pieces = ((hidden, part.reply_ids) for hidden, part in kept_pieces(split.train))
        _initialize(heads, pieces, options)
    rule = TargetRule(
        num_heads=options.shape.num_heads,
        columns=heads.vocabulary.columns(),
        soft_weight=options.soft_weight,
    )
    accuracy, log = run_trainer(
        HeadsOnFeatures(heads, options),
        [{"params": list(heads.parameters()), "lr": options.learning_rate}],
        FeatureRows(rows, rule),
        lambda: accuracy_of(heads, kept_pieces(split.held_out), options.num_nodes),
        folder,
        options,
        batch_size=options.batch_rows,
        num_epochs=options.num_epochs,
    )
    return TrainResult(heads.to_heads(), accuracy, log, len(rows))


def _train_on_backbone(
    base: BaseModel, heads: TrainableHeads, split: Split, folder: Path, options: TrainOptions
) -> TrainResult:
    module = HeadsOnBackbone(base.model, heads, options)
    train = PaddedConversations(split.train, options.max_length)
    if options.shape.has_projection:
        _initialize(heads, _first_pieces(module, train, options), options)
    accuracy, log = run_trainer(
        module,
        [{"params": list(heads.parameters()), "lr": options.learning_rate}],
        train,
        measure_on_backbone(module, split, options),
        folder,
        options,
        batch_size=options.batch_size,
        num_epochs=options.num_epochs,
    )
    return TrainResult(heads.to_heads(), accuracy, log, num_reply_tokens(split.train))


def measure_on_backbone(
    module: HeadsOnBackbone, split: Split, options: TrainOptions
) -> Callable[[], Accuracy]:
    """Measures the heads with the backbone as it is at that time."""
    held_out = PaddedConversations(split.held_out, options.max_length)

    def measure() -> Accuracy:
        pieces = computed_pieces(module, held_out, options.batch_size)
        return accuracy_of(module.heads, pieces, options.num_nodes)

    return measure


def num_reply_tokens(conversations: list[LabelledTokens]) -> int:
    """Tokens in replies."""
    return sum(int((conversation.turns > 0).sum()) for conversation in conversations)


def _initialize(heads: TrainableHeads, pieces: Iterator[Piece], options: TrainOptions) -> None:
    heads.set_projections(ridge_projections(pieces, options.shape.num_heads, options.ridge))


def _first_pieces(
    module: HeadsOnBackbone, data: PaddedConversations, options: TrainOptions
) -> Iterator[Piece]:
    """Some hidden states to fit the first projections to."""
    pieces = computed_pieces(module, data, options.batch_size)
    for _, (hidden, rows) in zip(range(_RIDGE_BATCHES), pieces, strict=False):
        yield hidden, rows.reply_ids
