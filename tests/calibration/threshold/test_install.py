"""Recommended thresholds in a bundle's manifest."""

from pathlib import Path

import pytest

from medusa_trt.calibration.threshold.install import install_thresholds
from medusa_trt.calibration.threshold.measurement import Rule
from medusa_trt.calibration.threshold.summary import Recommendation
from medusa_trt.errors import CalibrationError
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.manifest import Thresholds

TYPICAL = Rule(temperature=0.7, posterior_threshold=0.06, posterior_alpha=0.25)
ADVICE = [Recommendation(TYPICAL, "it is longer"), Recommendation(Rule(temperature=1.0), "it is")]


def test_thresholds_are_read_again(bundle: Path) -> None:
    install_thresholds(Bundle.open(bundle), ADVICE)
    typical, sampler = Bundle.open(bundle).manifest.typical
    assert typical.temperature == 0.7 and sampler.thresholds is None
    assert typical.thresholds == Thresholds(0.06, 0.25)


def test_a_bundle_that_cannot_be_written_is_named(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    (bundle / "manifest.json").unlink()
    (bundle / "manifest.json").mkdir()
    with pytest.raises(CalibrationError, match="cannot write"):
        install_thresholds(opened, ADVICE)
