"""Puts the recommended thresholds of typical acceptance into a bundle's manifest."""

from collections.abc import Sequence

import msgspec

from medusa_trt.calibration.threshold.summary import Recommendation
from medusa_trt.errors import CalibrationError
from medusa_trt.files import replace_file
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.manifest import Thresholds, TypicalSpec
from medusa_trt.runtime.tensors import MANIFEST_FILE


def install_thresholds(bundle: Bundle, recommendations: Sequence[Recommendation]) -> Bundle:
    """Replaces the thresholds in the manifest, which replies then have as their defaults.

    Args:
        bundle: the bundle.
        recommendations: one for each temperature.

    Returns:
        The bundle, opened again.

    Raises:
        CalibrationError: the bundle cannot be written.
    """
    typical = [
        TypicalSpec(
            temperature=rule.temperature,
            thresholds=None
            if rule.posterior_threshold is None or rule.posterior_alpha is None
            else Thresholds(rule.posterior_threshold, rule.posterior_alpha),
        )
        for rule in (advice.rule for advice in recommendations)
    ]
    manifest = msgspec.structs.replace(bundle.manifest, typical=typical)
    with replace_file(bundle.path / MANIFEST_FILE, CalibrationError) as temporary:
        temporary.write_bytes(manifest.to_json())
    return Bundle.open(bundle.path, check_hashes=False)
