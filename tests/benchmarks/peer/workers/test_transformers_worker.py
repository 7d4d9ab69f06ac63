"""Replies of the worker for transformers against `generate`."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from peer.workers.transformers_worker import load
from support.tiny_models import VOCAB_SIZE
from transformers import AutoModelForCausalLM


@pytest.fixture(autouse=True)
def keep_threads() -> Iterator[None]:
    usual_threads = torch.get_num_threads()
    yield
    torch.set_num_threads(usual_threads)


def test_replies_are_those_of_generate_and_do_not_end(tiny_model: Path) -> None:
    packages, start = load(str(tiny_model), "float32", 1)
    assert packages == ["transformers", "torch"] and torch.get_num_threads() == 1
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    for seed, length in enumerate((1, 7)):
        prompt = torch.randint(VOCAB_SIZE, (1, length), generator=torch.manual_seed(seed))
        expected = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=12,
            min_new_tokens=12,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert list(start(prompt[0].tolist(), 12)) == [[t] for t in expected[0, length:].tolist()]
