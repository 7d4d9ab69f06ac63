"""Options of a conversion of heads."""

from typing import get_args

from medusa_trt.export.head_conversion.options import DtypeName
from medusa_trt.export.head_conversion.saving import DTYPES


def test_the_command_line_offers_every_type() -> None:
    assert list(get_args(DtypeName)) == list(DTYPES)
