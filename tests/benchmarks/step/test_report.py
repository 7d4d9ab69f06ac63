"""The table of one bundle's steps."""

import msgspec
from step.report import StepTable


def test_a_floor_is_the_larger_of_reading_and_arithmetic() -> None:
    table = StepTable(
        bundle="b",
        precision="int8",
        threads=1,
        past=256,
        read_bytes=1,
        arithmetic_ms={1: 1.0, 64: 9.0},
        times_ms={"read": [4.0, 5.0, 60.0]},
    )
    assert [table.compute_floor_ms(nodes) for nodes in (1, 64)] == [5.0, 9.0]
    assert msgspec.json.decode(msgspec.json.encode(table), type=StepTable) == table
