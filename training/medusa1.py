"""Medusa-1: trains heads on a frozen backbone (paper, section 2.2.1)."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from medusa_trt.errors import TrainingError
from medusa_trt.export.heads.medusa_heads import MedusaHeads
from medusa_trt.export.models.base_model import BaseModel
from medusa_trt.export.weights.tied_weights import get_embeddings
from medusa_trt.training.accuracy import Accuracy
from medusa_trt.training.bars import Bar
from medusa_trt.training.data.datasets import FeatureRows, PaddedConversations
from medusa_trt.training.data.rows import Split, rows_from_conversations
from medusa_trt.training.data.shards import load_shards, read_spec
from medusa_trt.training.data.targets import DraftVocabulary, TargetRule
from medusa_trt.training.measurement import (
    StatesOfRows,
    measure_accuracy,
    states_from_backbone,
    states_from_data,
)
from medusa_trt.training.objectives import HeadsOnBackbone, HeadsOnFeatures
from medusa_trt.training.options import TrainOptions
from medusa_trt.training.ridge import Piece, fit_ridge_maps
from medusa_trt.training.trainable_heads import TrainableHeads
from medusa_trt.training.trainer import TrainResult, run_trainer

_RIDGE_ROWS = 1 << 18
"""Reply tokens that the initial linear maps are fitted to: more take minutes and change little."""


def load_split(base: BaseModel, folders: Sequence[Path], held_out_fraction: float) -> Split:
    """Reads a model's training data from one folder or several.

    Raises:
        TrainingError: a folder holds no data, lacks shards or was made by another model, or only
            some folders hold hidden states.
    """
    specs, config = [read_spec(folder) for folder in folders], base.model.config
    expected = (base.source.name, config.hidden_size, config.vocab_size)
    for folder, spec in zip(folders, specs, strict=True):
        if (spec.model, spec.hidden_size, spec.vocab_size) != expected:
            raise TrainingError(
                f"{folder} was made by {spec.model} (hidden size {spec.hidden_size}, "
                f"{spec.vocab_size} tokens), not by {expected[0]} ({expected[1]}, {expected[2]}): "
                "make data with the model that the heads are for"
            )
        if spec.has_features != specs[0].has_features:
            raise TrainingError(
                f"only one of {folders[0]} and {folder} holds hidden states: train on one of them"
            )
    shards = [shard for folder in folders for shard in load_shards(folder)]
    return Split.from_shards(shards, held_out_fraction)


def train_heads(
    base: BaseModel,
    split: Split,
    folder: Path,
    options: TrainOptions,
    initial: MedusaHeads | None = None,
) -> TrainResult:
    """Trains heads on a frozen backbone.

    The backbone does not run if the data holds hidden states.

    Args:
        base: the backbone.
        split: the backbone's replies.
        folder: folder of the checkpoints; an interrupted run continues from the last one.
        options: options of training.
        initial: heads to begin with; their shape and draft vocabulary replace those of the options.

    Raises:
        HeadsError: the given heads do not fit the backbone.
    """
    torch.manual_seed(options.seed)
    if initial is None:
        heads = create_heads(base, split, options)
    else:
        heads = TrainableHeads.from_heads(initial, base.model)
        options = replace(options, shape=heads.shape)
    module: HeadsOnFeatures | HeadsOnBackbone
    data: FeatureRows | PaddedConversations
    measure: Callable[[], Accuracy]
    if split.train[0].features is not None:
        rule = TargetRule(
            num_heads=options.shape.num_heads,
            columns=heads.vocabulary.make_columns(),
            soft_weight=options.soft_weight,
        )
        module = HeadsOnFeatures(heads, options)
        data = FeatureRows(rows_from_conversations(split.train), rule)
        states, batch_size = states_from_data(split.train), options.batch_rows
        measure = partial(_measure_on_features, heads, split, options)
    else:
        module = HeadsOnBackbone(base.model, heads, options)
        data = PaddedConversations(split.train, options.max_length)
        batch_size = options.batch_size
        states = states_from_backbone(module, data, batch_size)
        measure = partial(measure_on_backbone, module, split, options)
    num_fit_tokens = 0
    if initial is None:
        num_fit_tokens = _fit_linear_maps(heads, states, data.num_rows, options)
    result = run_trainer(
        module,
        [{"params": list(heads.parameters()), "lr": options.learning_rate}],
        data,
        measure,
        folder,
        options,
        batch_size=batch_size,
        num_epochs=options.num_epochs,
    )
    return replace(result, num_fit_tokens=num_fit_tokens)


def create_heads(base: BaseModel, split: Split, options: TrainOptions) -> TrainableHeads:
    """Creates untrained heads with the draft vocabulary of the replies to train on."""
    embedding, unembedding = get_embeddings(base.model)
    vocab_size = len(unembedding)
    size = vocab_size if options.draft_vocab_size is None else options.draft_vocab_size
    rows = rows_from_conversations([replace(c, features=None) for c in split.train])
    vocabulary = DraftVocabulary.from_rows(rows, size, vocab_size)
    heads = TrainableHeads(options.shape, vocabulary, unembedding, embedding)
    return heads.to(base.model.device)


def measure_on_backbone(module: HeadsOnBackbone, split: Split, options: TrainOptions) -> Accuracy:
    """Measures the heads on the held-out replies with the backbone's current weights."""
    held_out = PaddedConversations(split.held_out, options.max_length)
    states = states_from_backbone(module, held_out, options.batch_size)
    return measure_accuracy(module.heads, states, options.num_nodes)


def _measure_on_features(heads: TrainableHeads, split: Split, options: TrainOptions) -> Accuracy:
    return measure_accuracy(heads, states_from_data(split.held_out), options.num_nodes)


def _fit_linear_maps(
    heads: TrainableHeads, states: Iterator[StatesOfRows], num_rows: int, options: TrainOptions
) -> int:
    """Initializes the linear maps of the heads, if they have any, by ridge regression.

    Fits them to `states`, of `num_rows` reply tokens in all, and returns how many of these it read.
    """
    if not (options.shape.has_root_map or options.shape.has_projection):
        return 0
    num_tokens = 0

    def pieces() -> Iterator[Piece]:
        nonlocal num_tokens
        for hidden, rows in _limit_rows(states, _RIDGE_ROWS):
            num_tokens += len(rows)
            bar.update(min(len(rows), bar.total - bar.n))
            inputs = heads.join_inputs(hidden.float(), rows.token_ids.to(hidden.device))
            yield inputs, hidden, rows.reply_ids.to(hidden.device)

    with Bar("first maps", min(num_rows, _RIDGE_ROWS), "token") as bar:
        heads.set_linear_maps(fit_ridge_maps(pieces(), options.shape.num_heads, options.ridge))
    return num_tokens


def _limit_rows(states: Iterator[StatesOfRows], num_rows: int) -> Iterator[StatesOfRows]:
    """Passes on until there are at least `num_rows` rows."""
    for hidden, rows in states:
        if num_rows <= 0:
            return
        yield hidden, rows
        num_rows -= len(rows)
