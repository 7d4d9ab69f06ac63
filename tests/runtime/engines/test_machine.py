"""The machine that measurements are made on."""

from dataclasses import replace

from medusa_trt.runtime.engines.machine import Machine


def test_a_fingerprint_changes_with_what_step_times_depend_on() -> None:
    machine = Machine.detect()
    assert machine.memory_bytes > 2**28 and 1 <= machine.num_usable_cores <= machine.num_cores
    assert machine.fingerprint == Machine.detect().fingerprint
    for other in (
        replace(machine, cpu="another one"),
        replace(machine, kernels="another set"),
        replace(machine, num_usable_cores=99),
        replace(machine, versions=machine.versions | {"onnxruntime": "0.1"}),
    ):
        assert other.fingerprint != machine.fingerprint
    numpy = replace(machine, versions=machine.versions | {"numpy": "0.1"}, memory_bytes=1)
    assert numpy.fingerprint == machine.fingerprint
