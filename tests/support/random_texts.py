"""Texts of random tokens for models with the tiny vocabulary."""

import numpy as np
from support.tiny_models import VOCAB_SIZE

from medusa_trt.calibration.quantization.meter import Text


def random_texts(num_texts: int = 2) -> list[Text]:
    """Prompts with replies, up to three."""
    rng = np.random.default_rng(0)
    lengths = ((9, 17), (4, 6), (12, 30))[:num_texts]
    return [
        Text(*(tuple(rng.integers(0, VOCAB_SIZE, n).tolist()) for n in pair)) for pair in lengths
    ]
