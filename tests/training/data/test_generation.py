"""Continuing texts through transformers."""

import torch

from medusa_trt.export.models.base_model import BaseModel
from medusa_trt.training.data.generation import BatchGenerator, DrawOneToken


def test_drawing_follows_the_distribution() -> None:
    torch.manual_seed(0)
    scores = torch.tensor([0.0, 1.0, -torch.inf, 2.0])
    drawn = DrawOneToken(0.5)(torch.empty(0), scores.repeat(20_000, 1)).argmax(-1)
    shares = torch.bincount(drawn, minlength=4) / len(drawn)
    assert torch.allclose(shares, (scores / 0.5).softmax(-1), atol=0.01)


def test_sampled_text_differs_from_greedy_text_and_between_seeds(base: BaseModel) -> None:
    generator, text = BatchGenerator(base), [[65, 66, 67]] * 4

    def generate(temperature: float, seed: int) -> list[list[int]]:
        torch.manual_seed(seed)
        continuations = generator.continue_texts(text, max_new_tokens=8, temperature=temperature)
        return [continuation.token_ids for continuation in continuations]

    assert generate(0.0, 0) == generate(0.0, 1)
    assert generate(1.0, 0) == generate(1.0, 0) != generate(1.0, 1)


def test_a_batch_does_not_depend_on_what_the_model_generated_before(base: BaseModel) -> None:
    """Attention rounds by the size of the cache, which transformers keeps if it is given none."""
    generator = BatchGenerator(base)

    def generate(max_new_tokens: int) -> torch.Tensor:
        [reply] = generator.continue_texts(
            [[65, 66, 67]], max_new_tokens=max_new_tokens, temperature=0.0, keep_features=True
        )
        assert reply.features is not None
        return reply.features.hidden

    before = generate(8)
    generate(16)
    assert torch.equal(before, generate(8))
