"""What a user can cause, and the check of numbers that all options share."""

import math
from dataclasses import dataclass

import pytest

from medusa_trt.errors import BuildError, MedusaError, check_range, require_extra


@dataclass
class Options:
    size: int | None = None
    share: float = 0.5


@pytest.mark.parametrize(
    "options", [Options(), Options(size=1), Options(share=0), Options(share=1.0)]
)
def test_a_value_in_its_range_is_accepted(options: Options) -> None:
    check_range(options, BuildError, "size", 1)
    check_range(options, BuildError, "size share", 0, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(size=0), "size is 0: it must be at least 1"),
        (Options(share=1.5), "share is 1.5: it must be between 0 and 1"),
        (Options(share=math.nan), "share is nan: it must be between 0 and 1"),
        (Options(share=-math.inf), "share is -inf: it must be between 0 and 1"),
    ],
)
def test_another_value_is_named_with_its_range(options: Options, message: str) -> None:
    with pytest.raises(BuildError) as refused:
        check_range(options, BuildError, "size", 1)
        check_range(options, BuildError, "share", 0, 1)
    assert str(refused.value) == message


def test_an_infinite_number_is_refused_where_there_is_no_greatest() -> None:
    with pytest.raises(BuildError, match="share is inf: it must be at least 0"):
        check_range(Options(share=math.inf), BuildError, "share", 0)


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
