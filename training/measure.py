"""Heads measured on the model's replies to other prompts, MT-bench's for one."""

from collections.abc import Sequence
from pathlib import Path

import torch

from medusa_trt.calibration.prompts import mt_bench_prompts, prompts_from_file
from medusa_trt.export.heads.medusa_heads import MedusaHeads, embedding_of
from medusa_trt.export.models.base_model import BaseModel
from medusa_trt.training.accuracy import Accuracy
from medusa_trt.training.backbone import unembedding_of
from medusa_trt.training.data.conversation import ChatFrame, Conversation
from medusa_trt.training.data.generation import BatchGenerator
from medusa_trt.training.data.rows import DraftVocabulary, LabelledTokens
from medusa_trt.training.held_out import accuracy_of, kept_pieces
from medusa_trt.training.trainable_heads import TrainableHeads, shape_of
from medusa_trt.tree_configs import MedusaTree

_BATCH_SIZE = 64


def first_turns(path: Path | None) -> list[str]:
    """The first user turn of each prompt: a file's, or MT-bench's 80.

    Raises:
        PromptError: the file cannot be read.
    """
    prompts = mt_bench_prompts() if path is None else prompts_from_file(path)
    return [prompt.turns[0] for prompt in prompts]


def greedy_replies(
    base: BaseModel, turns: Sequence[str], max_new_tokens: int
) -> list[LabelledTokens]:
    """The model's greedy replies with their hidden states."""
    frame = ChatFrame.from_tokenizer(base.tokenizer)
    generator = BatchGenerator(base)
    texts = [frame.opening(base.tokenizer, turn) for turn in turns]
    replies = []
    for first in range(0, len(texts), _BATCH_SIZE):
        batch = texts[first : first + _BATCH_SIZE]
        written = generator.continue_texts(
            batch, max_new_tokens=max_new_tokens, temperature=0.0, keep_features=True
        )
        for text, reply in zip(batch, written, strict=True):
            conversation = Conversation()
            conversation.add(text)
            conversation.add(reply.token_ids, turn=1)
            ids, of = torch.tensor(conversation.token_ids), torch.tensor(conversation.turns)
            replies.append(LabelledTokens(ids, of, reply.features))
    return replies


def measure_heads(
    base: BaseModel,
    replies: list[LabelledTokens],
    heads: MedusaHeads,
    num_nodes: int,
    tree: MedusaTree | None = None,
) -> Accuracy:
    """Measures heads on replies.

    Args:
        base: the backbone.
        replies: of `greedy_replies`.
        heads: to measure.
        num_nodes: of the tree to make from one half of the replies and replay on the other.
        tree: replay this one instead, on all of them.

    Raises:
        HeadsError: the heads are of another backbone.
        TreeError: the tree is deeper than there are heads.
    """
    unembedding = unembedding_of(base.model)
    heads.check_fits(unembedding.shape[1], unembedding.shape[0])
    if tree is not None:
        tree.check(heads.num_heads, tree.top_k)
    vocabulary = DraftVocabulary(heads.token_map, len(unembedding))
    module = TrainableHeads(shape_of(heads), vocabulary, unembedding, embedding_of(base.model))
    module.load_heads(heads)
    return accuracy_of(module.to(base.model.device), kept_pieces(replies), num_nodes, tree)
