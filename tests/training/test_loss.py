"""The parts of training that are arithmetic, against slow references."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.reference import training as reference
from support.tiny_models import llama_config, random_model

from medusa_trt.errors import TrainingError
from medusa_trt.export.heads.medusa_heads import embedding_of
from medusa_trt.training.data.rows import DraftVocabulary, ReplyRows, TargetRule, Targets
from medusa_trt.training.data.shards import Features
from medusa_trt.training.loss import medusa_loss, sampled_columns, soft_cross_entropy
from medusa_trt.training.objectives import HeadsOnBackbone, divergence
from medusa_trt.training.options import HeadsShape, TrainOptions
from medusa_trt.training.ridge import ridge_maps
from medusa_trt.training.trainable_heads import TrainableHeads

VOCAB, HIDDEN = 30, 8


def random_rows(lengths: list[int], seed: int = 0) -> ReplyRows:
    generator = torch.Generator().manual_seed(seed)
    size = sum(lengths)
    logits = torch.randn(size, VOCAB, generator=generator)
    best = logits.log_softmax(-1).topk(8)
    features = Features(
        torch.randn(size, HIDDEN, generator=generator).half(),
        best.indices.int(),
        best.values.half(),
    )
    ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    tokens = torch.randint(VOCAB, (size,), generator=generator)
    return ReplyRows(tokens, ids, features)


def rule(num_heads: int = 3, soft_weight: float = 0.8, kept: list[int] | None = None) -> TargetRule:
    token_map = None if kept is None else torch.tensor(kept)
    columns = DraftVocabulary(token_map, VOCAB).columns()
    return TargetRule(num_heads=num_heads, columns=columns, soft_weight=soft_weight)


@given(
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=5),
    soft_weight=st.sampled_from([0.0, 0.8, 1.0]),
    kept=st.none() | st.sets(st.integers(0, VOCAB - 1), min_size=1).map(sorted),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_targets_are_the_teachers_and_the_text_of_the_same_reply(
    lengths: list[int], soft_weight: float, kept: list[int] | None, seed: int
) -> None:
    rows, num_heads = random_rows(lengths, seed), 3
    assert rows.features is not None
    targets = rule(num_heads, soft_weight, kept).targets(rows, torch.arange(len(rows)))
    vocabulary = list(range(VOCAB)) if kept is None else kept
    ends = np.cumsum(lengths)
    for row in range(len(rows)):
        end = int(ends[np.searchsorted(ends, row, side="right")])
        for head in range(num_heads):
            ahead = row + 1 + head
            assert bool(targets.exists[row, head]) == (ahead < end)
            expected: dict[int, float] = {}
            if ahead < end:
                best = rows.features.top_logprobs[ahead].double().exp()
                pairs = zip(rows.features.top_ids[ahead].tolist(), best / best.sum(), strict=True)
                weighted = [(token, soft_weight * float(share)) for token, share in pairs]
                for token, weight in [*weighted, (int(rows.token_ids[ahead]), 1 - soft_weight)]:
                    if token in vocabulary and weight:
                        column = vocabulary.index(token)
                        expected[column] = expected.get(column, 0.0) + weight
            found: dict[int, float] = {}
            for column, weight in zip(
                targets.columns[row, head].tolist(),
                targets.weights[row, head].tolist(),
                strict=True,
            ):
                if weight:
                    found[column] = found.get(column, 0.0) + weight
            assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("chunk_rows", [1, 3, 1000])
def test_cross_entropy_and_its_gradients_equal_autograd(
    chunk_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medusa_trt.training.loss._MAX_CHUNK_ELEMENTS", chunk_rows * VOCAB)
    torch.manual_seed(0)
    state, weight = torch.randn(7, HIDDEN), torch.randn(VOCAB, HIDDEN)
    columns = torch.randint(VOCAB, (7, 4))
    columns[0, 1] = columns[0, 0]  # a token may be both the text's and the teacher's
    weights, correction = torch.rand(7, 4), torch.randn(VOCAB)

    def gradients(loss: torch.Tensor, *leaves: torch.Tensor) -> list[torch.Tensor]:
        return [loss, *torch.autograd.grad(3 * loss, leaves)]

    leaves = [tensor.clone().requires_grad_() for tensor in (state, weight)]
    loss = soft_cross_entropy(leaves[0], leaves[1], columns, weights, correction)
    found = gradients(loss, *leaves)
    exact = [tensor.double().requires_grad_() for tensor in (state, weight)]
    logprobs = (exact[0] @ exact[1].T + correction).log_softmax(-1)
    expected = gradients(-(weights * logprobs.gather(1, columns)).sum(), *exact)
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one.double(), other, rtol=1e-4, atol=1e-4)


def test_each_head_counts_by_its_power_of_the_decay() -> None:
    rows = random_rows([9, 4])
    targets = rule().targets(rows, torch.arange(len(rows)))
    torch.manual_seed(0)
    states, weight = torch.randn(3, len(rows), HIDDEN), torch.randn(VOCAB, HIDDEN)
    alone = [
        medusa_loss(
            states[k : k + 1],
            [weight],
            Targets(
                targets.columns[:, k : k + 1],
                targets.weights[:, k : k + 1],
                targets.exists[:, k : k + 1],
            ),
            decay=1.0,
        )
        for k in range(3)
    ]
    together = medusa_loss(states, [weight] * 3, targets, decay=0.8)
    assert float(together) == pytest.approx(
        float(alone[0]) + 0.8 * float(alone[1]) + 0.64 * float(alone[2]), rel=1e-5
    )


def test_sampled_softmax_is_exact_with_all_tokens_and_right_on_average() -> None:
    rows = random_rows([4])
    targets = rule(1, 0.0).targets(rows, torch.arange(len(rows)))
    torch.manual_seed(1)
    states, weight = torch.randn(1, len(rows), HIDDEN), torch.randn(VOCAB, HIDDEN)
    exact = medusa_loss(states, [weight], targets, decay=0.8)
    kept, correction, places = sampled_columns(targets, VOCAB, VOCAB)
    assert sorted(kept.tolist()) == list(range(VOCAB)) and not correction.any()
    assert torch.equal(kept[places], torch.arange(VOCAB))
    logits = states[0] @ weight.T
    normalizers = []
    for _ in range(4000):
        kept, correction, _places = sampled_columns(targets, VOCAB, 8)
        normalizers.append((logits[:, kept] + correction).exp().sum(-1))
    mean = torch.stack(normalizers).mean(0)
    assert torch.allclose(mean, logits.exp().sum(-1), rtol=0.05)
    rough = medusa_loss(states, [weight], targets, decay=0.8, num_sampled=25)
    assert float(rough) == pytest.approx(float(exact), rel=0.1)


def test_padding_and_user_turns_never_enter_the_loss() -> None:
    """Against a loop over positions; then everything outside the replies is changed."""
    torch.manual_seed(0)
    model = random_model(llama_config(vocab_size=VOCAB, hidden_size=32, intermediate_size=48))
    shape = HeadsShape(num_heads=3, num_layers=2)
    unembedding = model.get_output_embeddings().weight.detach()
    vocabulary = DraftVocabulary(None, VOCAB)
    heads = TrainableHeads(shape, vocabulary, unembedding, embedding_of(model))
    for parameter in heads.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    options = TrainOptions(shape=shape, soft_weight=0.0)
    module = HeadsOnBackbone(model, heads, options)
    turns = [[0, 0, 1, 1, 1, 0, 0, 2, 2, 2, 2], [0, 1, 1], [0, 0, 0, 1]]
    generator = torch.Generator().manual_seed(2)
    tokens = [torch.randint(VOCAB, (len(row),), generator=generator).tolist() for row in turns]

    def padded(rows: list[list[int]], value: int) -> torch.Tensor:
        size = max(map(len, rows))
        return torch.tensor([row + [value] * (size - len(row)) for row in rows])

    mask = padded([[1] * len(row) for row in turns], 0)
    loss = module(padded(tokens, 0), padded(turns, 0), mask)
    other_padding = module(padded(tokens, 7), padded(turns, 0), mask)
    assert other_padding.item() == pytest.approx(loss.item())
    logits = [[], [], []]  # type: list[list[list[np.ndarray]]]
    for row in tokens:
        hidden = model.model(torch.tensor([row])).last_hidden_state[0]
        roots = torch.tensor([*row[1:], 0])  # the last position predicts nothing
        for k, of_head in enumerate(heads.logits(hidden, roots)):
            logits[k].append(list(of_head.double().numpy()))
    expected = reference.loss_over_positions(logits, tokens, turns, 0.8)
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    loss.backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(parameter.grad is not None for parameter in heads.parameters())


def test_divergence_is_the_kl_from_teacher_to_model() -> None:
    torch.manual_seed(0)
    teacher, model = torch.randn(5, VOCAB), torch.randn(5, VOCAB)
    p, q = teacher.double().softmax(-1).numpy(), model.double().softmax(-1).numpy()
    expected = np.mean(
        [
            sum(a * np.log(a / b) for a, b in zip(x, y, strict=True))
            for x, y in zip(p, q, strict=True)
        ]
    )
    assert float(divergence(teacher, model)) == pytest.approx(float(expected), rel=1e-4)
    assert float(divergence(teacher, teacher)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("num_pieces", [1, 3])
def test_ridge_without_penalty_is_least_squares(num_pieces: int) -> None:
    """From 7 inputs to the change of 5 hidden values."""
    rng = np.random.default_rng(0)
    pieces = []
    for piece in range(num_pieces):
        lengths = [20, 1, 2, 30]
        ids = np.repeat(np.arange(4) + 10 * piece, lengths)
        x, hidden = rng.normal(size=(sum(lengths), 7)), rng.normal(size=(sum(lengths), 5))
        pieces.append((x, hidden, ids))
    tensors = [(torch.tensor(x), torch.tensor(h), torch.tensor(ids)) for x, h, ids in pieces]
    maps = ridge_maps(tensors, num_heads=2, ridge=0.0)
    for ahead, map_ in enumerate(maps, start=1):
        inputs, outputs = [], []
        for x, hidden, ids in pieces:
            for row in range(len(x) - ahead):
                if ids[row] == ids[row + ahead]:
                    inputs.append([*x[row], 1.0])
                    outputs.append(hidden[row + ahead] - hidden[row])
        solution = np.linalg.lstsq(np.array(inputs), np.array(outputs), rcond=None)[0]
        assert map_.bias is not None
        assert np.allclose(map_.weight.numpy(), solution[:-1].T, atol=1e-5)
        assert np.allclose(map_.bias.numpy(), solution[-1], atol=1e-5)


def test_the_draft_vocabulary_is_counted_in_replies() -> None:
    rows = ReplyRows(torch.tensor([5, 5, 9, 2, 9, 5]), torch.zeros(6, dtype=torch.int64))
    vocabulary = DraftVocabulary.most_frequent(rows, 2, 12)
    assert vocabulary.token_map is not None and vocabulary.token_map.tolist() == [5, 9]
    assert [int(c) for c in vocabulary.columns()[[5, 9, 2]]] == [0, 1, -1]
    assert DraftVocabulary.most_frequent(rows, 12, 12).token_map is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_rows": 0}, "batch_rows is 0"),
        ({"soft_weight": 1.5}, "between 0 and 1"),
        ({"held_out_fraction": 0.0}, "held_out_fraction is 0"),
        ({"num_nodes": 1}, "num_nodes is 1"),
    ],
)
def test_options_are_checked(change: dict[str, float], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        replace(TrainOptions(), **change)  # type: ignore[arg-type]
