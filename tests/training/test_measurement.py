"""Measured heads against heads run token by token in float64."""

from pathlib import Path

import numpy as np
import pytest
import torch
from support.reference import accuracy as reference
from support.reference.heads import head_logits
from support.tiny_models import HIDDEN_SIZE, TINY_HEADS, VOCAB_SIZE, head_tensors, save_tiny_heads

from medusa_trt.errors import TreeError
from medusa_trt.export.heads.loading import heads_from_path
from medusa_trt.export.heads.medusa_heads import MedusaHeads
from medusa_trt.export.models.base_model import BaseModel
from medusa_trt.export.weights.tied_weights import get_embeddings
from medusa_trt.training.accuracy import NUM_CANDIDATES
from medusa_trt.training.data.datasets import PaddedConversations
from medusa_trt.training.data.rows import LabelledTokens
from medusa_trt.training.data.shards import Features
from medusa_trt.training.data.targets import DraftVocabulary
from medusa_trt.training.measurement import (
    generate_replies,
    load_first_turns,
    measure_heads,
    states_from_backbone,
    states_from_data,
)
from medusa_trt.training.objectives import HeadsOnBackbone
from medusa_trt.training.options import HeadsShape, TrainOptions
from medusa_trt.training.trainable_heads import TrainableHeads
from medusa_trt.tree_configs import MedusaTree, load_tree

NUM_HEADS = 2


def make_reply(seed: int, length: int) -> tuple[LabelledTokens, reference.Reply]:
    """Makes a reply in which many tokens are a head's candidate, and the candidates of each head.

    Row r of the hidden states predicts token r, and head i drafts token r + 1 + i from it.
    """
    tensors = {name: t.numpy() for name, t in head_tensors(num_heads=NUM_HEADS).items()}
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(length, HIDDEN_SIZE)).astype(np.float16)
    logits = head_logits(tensors, np.zeros((VOCAB_SIZE, HIDDEN_SIZE)), hidden.astype(np.float64))
    candidates = logits.argsort(-1)[..., ::-1][..., :NUM_CANDIDATES].transpose(1, 0, 2)
    tokens = rng.integers(0, VOCAB_SIZE, length)
    for place in range(1, length):
        head = int(rng.integers(0, min(NUM_HEADS, place)))
        if rng.random() < 0.8:
            tokens[place] = candidates[place - 1 - head][head][rng.integers(0, 4)]
    best = torch.zeros(length, 8)
    features = Features(torch.from_numpy(hidden), best.int(), best.half())
    prompt = torch.tensor([7, 8], dtype=torch.int32)
    token_ids = torch.cat([prompt, torch.from_numpy(tokens).int()])
    turns = torch.tensor([0, 0, *[1] * length], dtype=torch.int32)
    labelled = LabelledTokens(token_ids, turns, features)
    return labelled, reference.Reply(tokens.tolist(), candidates.tolist())


@pytest.fixture
def heads(tmp_path: Path) -> MedusaHeads:
    tensors = head_tensors(num_heads=NUM_HEADS)
    return heads_from_path(save_tiny_heads(tmp_path / TINY_HEADS, tensors))


@pytest.mark.parametrize("name", [None, "cartesian-2x3"])
def test_accuracy_is_that_of_heads_run_token_by_token(
    name: str | None, base: BaseModel, heads: MedusaHeads
) -> None:
    pairs = [make_reply(seed, length) for seed, length in enumerate((30, 1, 17, 2, 41, 25))]
    data, replies = [labelled for labelled, _ in pairs], [reply for _, reply in pairs]
    tree = None if name is None else load_tree(name)
    accuracy = measure_heads(base, data, heads, num_nodes=6, tree=tree)
    for k, shares in ((1, accuracy.top_1), (5, accuracy.top_5), (10, accuracy.top_10)):
        expected = [reference.top_k_accuracy(replies, head, k) for head in range(NUM_HEADS)]
        assert list(shares) == pytest.approx(expected)
    replayed, paths = replies, set(map(tuple, tree.medusa_choices)) if tree else set()
    if tree is None:
        replayed = replies[3:]
        paths = set(reference.find_most_frequent_paths(replies[:3], 5))
        assert set(accuracy.tree.medusa_choices) == paths
    assert accuracy.tokens_per_step == reference.tokens_per_step(replayed, paths) > 1.2
    assert accuracy.num_tokens == sum(len(reply.token_ids) for reply in replies)


def test_a_tree_deeper_than_the_heads_is_refused(base: BaseModel, heads: MedusaHeads) -> None:
    deep = MedusaTree.from_choices([(0,), (0, 0), (0, 0, 0)])
    with pytest.raises(TreeError):
        measure_heads(base, [make_reply(0, 5)[0]], heads, num_nodes=2, tree=deep)


def test_replies_are_greedy_and_their_states_are_the_backbones(base: BaseModel) -> None:
    turns = ["Hi", "Name a river", "Go"]
    replies = generate_replies(base, turns, 12)
    for turn, reply in zip(turns, replies, strict=True):
        prompt = base.tokenizer(f"user: {turn}\nassistant: ", add_special_tokens=False).input_ids
        is_reply = reply.turns == 1
        assert reply.token_ids[~is_reply].tolist() == prompt
        ids = reply.token_ids.long()
        with torch.no_grad():
            outputs = base.model(ids[None], output_hidden_states=True)
        rows = torch.arange(len(prompt) - 1, len(ids) - 1)
        assert torch.equal(outputs.logits[0, rows].argmax(-1), ids[is_reply])
        assert reply.features is not None
        expected = outputs.hidden_states[-1][0, rows]
        assert torch.allclose(reply.features.hidden.float(), expected, atol=1e-2)


def test_states_computed_again_are_those_of_the_data(base: BaseModel) -> None:
    data = generate_replies(base, ["Hi", "Name a river", "Go"], 12)
    embedding, unembedding = get_embeddings(base.model)
    shape = HeadsShape(num_heads=1)
    vocabulary = DraftVocabulary(None, len(unembedding))
    module = HeadsOnBackbone(
        base.model, TrainableHeads(shape, vocabulary, unembedding, embedding), TrainOptions()
    )
    [(stored, stored_rows)] = states_from_data(data)
    parts = list(states_from_backbone(module, PaddedConversations(data, 512), batch_size=2))
    assert len(parts) == 2
    hidden = torch.cat([states for states, _ in parts])
    assert torch.allclose(hidden, stored.float(), atol=1e-2)
    tokens = torch.cat([rows.token_ids for _, rows in parts])
    assert torch.equal(tokens, stored_rows.token_ids)


def test_first_turns_come_from_a_file_or_mt_bench(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"turns": ["one", "two"]}\n{"prompt": "three"}\n')
    assert load_first_turns(path) == ["one", "three"]
    assert len(load_first_turns(None)) == 80
