"""What is said where a package is missing."""

import pytest

from medusa_trt.cli.extras import require_extra
from medusa_trt.errors import MedusaError


def test_a_missing_package_names_the_extras() -> None:
    with (
        pytest.raises(MedusaError) as refused,
        require_extra("building", "tensorrt", "tensorrt-rtx"),
    ):
        import no_such_package  # type: ignore[import-not-found]  # noqa: F401
    assert str(refused.value) == (
        "building needs no_such_package: pip install 'medusa-trt[tensorrt]' or "
        "pip install 'medusa-trt[tensorrt-rtx]'"
    )
