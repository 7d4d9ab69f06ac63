"""Rotary embeddings that are fixed at the longest sequence."""

from pathlib import Path

import numpy as np
import pytest
from support.bundle_steps import (
    MAX_LOGIT_DIFFERENCE,
    expected_logits,
    exported,
    prefill,
)
from support.model_families import (
    MAX_LENGTH,
    longrope,
    weighted_model,
)
from support.tiny_models import VOCAB_SIZE

from medusa_trt.runtime.engines.ort_cpu import OrtEngine


@pytest.mark.slow
@pytest.mark.parametrize("original_length", [MAX_LENGTH - 1, MAX_LENGTH])
def test_the_longest_sequence_decides_on_longropes_frequencies(
    original_length: int, tmp_path: Path
) -> None:
    model = weighted_model(longrope(original_length))
    engine = OrtEngine(exported(model, tmp_path), capacity=2 * MAX_LENGTH)
    text = np.random.default_rng(0).integers(0, VOCAB_SIZE, MAX_LENGTH)
    difference = np.abs(prefill(engine, text, 16)[-1] - expected_logits(model, text)).max()
    assert difference <= MAX_LOGIT_DIFFERENCE
    # A shorter text: transformers has the long frequencies for the longest alone.
    difference = np.abs(prefill(engine, text[:40], 16)[-1] - expected_logits(model, text[:40]))
    assert (difference.max() <= MAX_LOGIT_DIFFERENCE) == (original_length == MAX_LENGTH)
    engine.close()
