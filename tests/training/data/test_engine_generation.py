"""Continuing texts through an engine."""

import numpy as np
import pytest
from support.tiny_models import EOS_ID

from medusa_trt.errors import TrainingError
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.session import MedusaSession
from medusa_trt.training.data.engine_generation import SessionGenerator


def test_a_texts_continuation_does_not_depend_on_the_batch_it_is_in(tiny_bundle: Bundle) -> None:
    """Texts of different lengths that end at different times, more than the engine has slots."""
    rng = np.random.default_rng(0)
    opening = [5, 6, 7]
    texts = [opening + rng.integers(3, 90, rng.integers(0, 40)).tolist() for _ in range(30)]

    def continue_texts(batch_size: int, eos_ids: list[int]) -> list[list[int]]:
        with MedusaSession(tiny_bundle, max_length=120, batch_size=batch_size) as session:
            generator = SessionGenerator(session, eos_ids)
            continuations = generator.continue_texts(texts, max_new_tokens=20, temperature=0)
        assert all(c.is_ended == (c.token_ids[-1] in eos_ids) for c in continuations)
        return [c.token_ids for c in continuations]

    token_ids = continue_texts(1, [])
    ends = sorted({token for ids in token_ids for token in ids})[::6]
    alone = continue_texts(1, ends)
    assert len({len(ids) for ids in alone}) > 3  # else no text would change its slot
    assert continue_texts(24, ends) == alone


def test_a_text_that_does_not_fit_the_engine_is_refused(tiny_bundle: Bundle) -> None:
    generator = SessionGenerator(MedusaSession(tiny_bundle, max_length=64), [EOS_ID])
    with pytest.raises(TrainingError, match="50 tokens and 20 new ones do not fit"):
        generator.continue_texts([[5] * 50], max_new_tokens=20, temperature=0)
