"""The loss of Medusa heads against autograd."""

import pytest
import torch
from support.reply_rows import HIDDEN, VOCAB, make_rule, random_rows

from medusa_trt.training.data.targets import Targets
from medusa_trt.training.loss import compute_medusa_loss, compute_soft_cross_entropy, sample_columns


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
    loss = compute_soft_cross_entropy(leaves[0], leaves[1], columns, weights, correction)
    actual = gradients(loss, *leaves)
    exact = [tensor.double().requires_grad_() for tensor in (state, weight)]
    logprobs = (exact[0] @ exact[1].T + correction).log_softmax(-1)
    expected = gradients(-(weights * logprobs.gather(1, columns)).sum(), *exact)
    for one, other in zip(actual, expected, strict=True):
        assert torch.allclose(one.double(), other, rtol=1e-4, atol=1e-4)


def test_each_head_counts_by_its_power_of_the_decay() -> None:
    rows = random_rows([9, 4])
    targets = make_rule().make_targets(rows, torch.arange(len(rows)))
    torch.manual_seed(0)
    states, weight = torch.randn(3, len(rows), HIDDEN), torch.randn(VOCAB, HIDDEN)
    alone = [
        compute_medusa_loss(
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
    together = compute_medusa_loss(states, [weight] * 3, targets, decay=0.8)
    assert float(together) == pytest.approx(
        float(alone[0]) + 0.8 * float(alone[1]) + 0.64 * float(alone[2]), rel=1e-5
    )


def test_sampled_softmax_is_exact_with_all_tokens_and_right_on_average() -> None:
    rows = random_rows([4])
    targets = make_rule(1, 0.0).make_targets(rows, torch.arange(len(rows)))
    torch.manual_seed(1)
    states, weight = torch.randn(1, len(rows), HIDDEN), torch.randn(VOCAB, HIDDEN)
    exact = compute_medusa_loss(states, [weight], targets, decay=0.8)
    kept, correction, places = sample_columns(targets, VOCAB, VOCAB)
    assert sorted(kept.tolist()) == list(range(VOCAB)) and not correction.any()
    assert torch.equal(kept[places], torch.arange(VOCAB))
    logits = states[0] @ weight.T
    normalizers = []
    for _ in range(4000):
        kept, correction, _places = sample_columns(targets, VOCAB, 8)
        normalizers.append((logits[:, kept] + correction).exp().sum(-1))
    mean = torch.stack(normalizers).mean(0)
    assert torch.allclose(mean, logits.exp().sum(-1), rtol=0.05)
    rough = compute_medusa_loss(states, [weight], targets, decay=0.8, num_sampled=25)
    assert float(rough) == pytest.approx(float(exact), rel=0.1)
