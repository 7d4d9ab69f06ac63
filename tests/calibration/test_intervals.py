"""Bootstrap intervals."""

import numpy as np
import pytest

from medusa_trt.calibration.intervals import resample_medians


def test_resample_medians_are_spread_as_the_samples() -> None:
    assert set(resample_medians([3.0])) == {3.0}
    samples = np.random.default_rng(0).normal(10, 1, 25)
    # The median of n normal samples has a standard error of about 1.25 / sqrt(n).
    assert resample_medians(samples.tolist()).std() == pytest.approx(0.25, abs=0.12)
