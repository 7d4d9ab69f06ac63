from types import SimpleNamespace
from typing import Any

import pytest

from medusa_trt.errors import EngineError
from medusa_trt.export import targets
from medusa_trt.export.targets import TARGETS, describe_fallback, precision_from_name
from medusa_trt.runtime.engines import backends, operators

ORT_CPU = TARGETS["ort-cpu"]


def test_without_the_operator_library_the_export_says_what_it_falls_back_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (targets, operators):
        monkeypatch.setattr(module, "find_library", lambda: None)
    precision = precision_from_name(ORT_CPU, None)
    assert precision.name == "fp32"
    notice = describe_fallback(ORT_CPU, precision, None)
    assert notice is not None
    assert "fp32 instead of int8" in notice and "C++ compiler" in notice
    assert describe_fallback(ORT_CPU, precision_from_name(ORT_CPU, "fp32"), "fp32") is None
    with pytest.raises(EngineError, match=r"C\+\+ compiler"):
        precision_from_name(ORT_CPU, "int8")


def test_the_default_needs_no_notice() -> None:
    assert describe_fallback(ORT_CPU, ORT_CPU.precisions[0], None) is None


@pytest.mark.parametrize("name", TARGETS)
def test_a_session_finds_the_backend_of_every_target(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = object()
    for backend in backends.BACKENDS:
        monkeypatch.setitem(backends.BACKENDS, backend, lambda *_, **__: opened)
    bundle: Any = SimpleNamespace(manifest=SimpleNamespace(target=SimpleNamespace(name=name)))
    engine = backends.engine_from_backend(None, bundle, capacity=64, batch_size=1, num_threads=None)
    assert engine is opened
