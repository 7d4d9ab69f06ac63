"""Measures heads: on held-out replies during training, and on replies to other prompts."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from medusa_trt.calibration.prompts import load_mt_bench_prompts, prompts_from_file
from medusa_trt.export.heads.medusa_heads import MedusaHeads
from medusa_trt.export.models.base_model import BaseModel
from medusa_trt.training.accuracy import Accuracy, ranks_from_logits
from medusa_trt.training.bars import BatchesBar
from medusa_trt.training.data.conversation import ChatFrame, Conversation
from medusa_trt.training.data.datasets import PaddedConversations
from medusa_trt.training.data.generation import BatchGenerator
from medusa_trt.training.data.rows import LabelledTokens, ReplyRows, rows_from_conversations
from medusa_trt.training.data.targets import TargetRule
from medusa_trt.training.objectives import HeadsOnBackbone
from medusa_trt.training.trainable_heads import TrainableHeads
from medusa_trt.tree_configs import MedusaTree

_BATCH_SIZE = 64
_CHUNK_ROWS = 1024

StatesOfRows = tuple[torch.Tensor, ReplyRows]
"""(R, hidden) hidden states and the R reply tokens that they predict, of whole replies."""


def load_first_turns(path: Path | None) -> list[str]:
    """Reads the first user turn of each prompt of a file, or of MT-bench's 80 prompts if None.

    Raises:
        PromptError: the file cannot be read.
    """
    prompts = load_mt_bench_prompts() if path is None else prompts_from_file(path)
    return [prompt.turns[0] for prompt in prompts]


def generate_replies(
    base: BaseModel, turns: Sequence[str], max_new_tokens: int
) -> list[LabelledTokens]:
    """Generates the model's greedy replies to user turns, with their hidden states."""
    frame = ChatFrame.from_tokenizer(base.tokenizer)
    texts = [frame.encode_opening(base.tokenizer, turn) for turn in turns]
    batches = [texts[first : first + _BATCH_SIZE] for first in range(0, len(texts), _BATCH_SIZE)]
    continuations = []
    with BatchesBar("replies", len(batches), max_new_tokens) as bar:
        generator = BatchGenerator(base, bar.advance)
        for batch in batches:
            continuations += generator.continue_texts(
                batch, max_new_tokens=max_new_tokens, temperature=0.0, keep_features=True
            )
            bar.finish_batch()
    replies = []
    for text, reply in zip(texts, continuations, strict=True):
        conversation = Conversation()
        conversation.add(text)
        conversation.add(reply.token_ids, turn=1)
        token_ids, labels = map(torch.tensor, (conversation.token_ids, conversation.turns))
        replies.append(LabelledTokens(token_ids, labels, reply.features))
    return replies


def measure_heads(
    base: BaseModel,
    replies: list[LabelledTokens],
    heads: MedusaHeads,
    num_nodes: int,
    tree: MedusaTree | None = None,
) -> Accuracy:
    """Measures heads on generated replies.

    Args:
        base: the backbone.
        replies: replies that `generate_replies` made.
        heads: the heads to measure.
        num_nodes: nodes of the tree, which is made from one half of the replies and replayed on
            the other half.
        tree: replay this tree instead, on all replies.

    Raises:
        HeadsError: the heads belong to another backbone.
        TreeError: the tree is deeper than the number of heads.
    """
    if tree is not None:
        tree.check(heads.num_heads, tree.top_k)
    trainable = TrainableHeads.from_heads(heads, base.model)
    return measure_accuracy(trainable, states_from_data(replies), num_nodes, tree)


def measure_accuracy(
    heads: TrainableHeads,
    states: Iterator[StatesOfRows],
    num_nodes: int,
    tree: MedusaTree | None = None,
) -> Accuracy:
    """Ranks the right tokens among the heads' candidates; see `Accuracy.from_ranks`."""
    replies = [ranks for hidden, rows in states for ranks in _rank_replies(heads, hidden, rows)]
    return Accuracy.from_ranks(replies, num_nodes, tree)


def states_from_data(conversations: list[LabelledTokens]) -> Iterator[StatesOfRows]:
    """Reads the hidden states that the data holds."""
    for first in range(0, len(conversations), _CHUNK_ROWS // 8):
        rows = rows_from_conversations(conversations[first : first + _CHUNK_ROWS // 8])
        assert rows.features is not None
        yield rows.features.hidden, rows


def states_from_backbone(
    module: HeadsOnBackbone, data: PaddedConversations, batch_size: int
) -> Iterator[StatesOfRows]:
    """Computes the hidden states with the backbone."""
    for first in range(0, len(data), batch_size):
        places = list(range(first, min(first + batch_size, len(data))))
        batch = {k: v.to(module.model.device) for k, v in data.__getitems__(places).items()}
        with torch.inference_mode():
            hidden, _ = module.compute_hidden_and_logits(**batch)
        yield hidden, ReplyRows.from_padded(batch["token_ids"], batch["turns"])


def _rank_replies(
    heads: TrainableHeads, hidden: torch.Tensor, rows: ReplyRows
) -> Iterator[NDArray[np.int16]]:
    """Yields (n - 1, num_heads) ranks of each reply of n tokens: nothing follows the last one."""
    device = next(heads.parameters()).device
    rule = TargetRule(
        num_heads=heads.shape.num_heads,
        columns=heads.vocabulary.make_columns().to(rows.token_ids.device),
        soft_weight=0.0,
    )
    parts = []
    for index in torch.arange(len(rows), device=rows.token_ids.device).split(_CHUNK_ROWS):
        targets = rule.make_targets(rows, index)
        columns = targets.columns[..., 0].where(targets.weights[..., 0] > 0, -1)
        state = hidden[index.to(hidden.device)].to(device).float()
        logits = heads.compute_logits(state, rows.token_ids[index].to(device))
        parts.append(ranks_from_logits(logits, columns.to(device), targets.exists.to(device)))
    lengths = rows.reply_ids.unique_consecutive(return_counts=True)[1].tolist()
    replies = np.split(np.concatenate(parts), np.cumsum(lengths)[:-1])
    return (ranks[:-1] for ranks in replies)
