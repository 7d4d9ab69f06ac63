"""The record of built engines against the machine that loads them."""

import msgspec
import pytest

from medusa_trt.runtime.engines.engine_record import EngineRecord, Machine, find_mismatches

RECORD = EngineRecord(
    product="tensorrt",
    version="11.0.0",
    compute_capabilities=["8.6"],
    any_version=False,
    any_hardware=False,
    refittable=False,
    stripped=False,
    weight_streaming=False,
    capacity=384,
    max_batch_size=1,
    weights_sha256="",
    options={},
    engines={},
)


@pytest.mark.parametrize(
    ("machine", "expected"),
    [
        (Machine("tensorrt", "11.0.0", "8.6"), []),
        (Machine("tensorrt-rtx", "11.0.0", "8.6"), ["for tensorrt, not for tensorrt-rtx"]),
        (Machine("tensorrt", "11.1.0", "8.6"), ["built with version 11.0.0, installed is 11.1.0"]),
        (Machine("tensorrt", "11.0.0", "9.0"), ["capability 8.6, this GPU has 9.0"]),
        (Machine("tensorrt", "10.9", "7.5"), ["version 11.0.0", "capability 8.6"]),
    ],
)
def test_what_does_not_fit_is_named(machine: Machine, expected: list[str]) -> None:
    reasons = find_mismatches(RECORD, machine)
    assert len(reasons) == len(expected)
    assert all(part in reason for part, reason in zip(expected, reasons, strict=True))


def test_compatible_engines_load_on_later_versions_and_gpus() -> None:
    compatible = msgspec.structs.replace(RECORD, any_version=True, any_hardware=True)
    assert not find_mismatches(compatible, Machine("tensorrt", "11.2.1", "12.0"))
    assert not find_mismatches(compatible, Machine("tensorrt", "11.2.1", "8.0"))
    assert len(find_mismatches(compatible, Machine("tensorrt", "10.9.0", "7.5"))) == 2
