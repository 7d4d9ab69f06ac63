"""The training objectives against plain loops."""

import numpy as np
import pytest
import torch
from support.reference import training as reference
from support.reply_rows import VOCAB
from support.tiny_models import llama_config, random_model

from medusa_trt.export.weights.tied_weights import get_embeddings
from medusa_trt.training.data.targets import DraftVocabulary
from medusa_trt.training.objectives import HeadsOnBackbone, kl_divergence
from medusa_trt.training.options import HeadsShape, TrainOptions
from medusa_trt.training.trainable_heads import TrainableHeads


def test_padding_and_user_turns_never_enter_the_loss() -> None:
    """Against a loop over positions; then everything outside the replies is changed."""
    torch.manual_seed(0)
    model = random_model(llama_config(vocab_size=VOCAB, hidden_size=32, intermediate_size=48))
    shape = HeadsShape(num_heads=3, num_layers=2)
    embedding, unembedding = get_embeddings(model)
    vocabulary = DraftVocabulary(None, VOCAB)
    heads = TrainableHeads(shape, vocabulary, unembedding, embedding)
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
        for k, of_head in enumerate(heads.compute_logits(hidden, roots)):
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
    assert float(kl_divergence(teacher, model)) == pytest.approx(float(expected), rel=1e-4)
    assert float(kl_divergence(teacher, teacher)) == pytest.approx(0, abs=1e-6)
