"""Polygraphy's runners, as far as they can be made without a GPU."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.built_engines import needs_rtx

from medusa_trt.calibration.gpu_report import runners
from medusa_trt.calibration.gpu_report.runners import (
    BuiltEngines,
    build_marked_engine,
    find_engines,
    make_runners,
    require_polygraphy,
)
from medusa_trt.errors import CalibrationError
from medusa_trt.runtime.bundle import Bundle


def record_of(product: str) -> Any:
    """What is read of a record of engines."""
    return SimpleNamespace(
        product=product,
        options={"max_length": None, "max_tree_nodes": 64},
        engines={"heads": SimpleNamespace(file="heads.engine")},
    )


def test_a_missing_polygraphy_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "polygraphy", None)
    with pytest.raises(CalibrationError, match=r"pip install 'medusa-trt\[gpu-report\]'"):
        require_polygraphy()


def test_targets_of_onnx_runtime_have_no_engines(tiny_bundle: Bundle) -> None:
    assert find_engines(tiny_bundle) is None


def test_the_runner_of_an_engine_reads_its_file(tiny_bundle: Bundle, tmp_path: Path) -> None:
    pytest.importorskip("polygraphy", reason="polygraphy is not installed: the extra gpu-report")
    engines = BuiltEngines(tmp_path, record_of("tensorrt"))
    tested, reference = make_runners(tiny_bundle, "heads", engines)
    assert tested.name == "tensorrt" and reference.name == "reference"
    assert tested._engine_or_context._path == str(tmp_path / "heads.engine")
    assert tested.allocation_strategy is None


@needs_rtx
@pytest.mark.slow
@pytest.mark.parametrize("graph", ["verify", "heads", "reduce"])
def test_an_engine_of_all_tensors_can_be_built(trt_bundle: Bundle, graph: str) -> None:
    pytest.importorskip("polygraphy", reason="polygraphy is not installed: the extra gpu-report")
    plan = build_marked_engine(trt_bundle, graph, record_of("tensorrt-rtx"), ("8.6",))
    assert len(plan) > 10_000


def test_the_outputs_of_a_graph_are_marked_first() -> None:
    module = SimpleNamespace(LayerType=SimpleNamespace(ATTENTION_OUTPUT=1, SHAPE=2, CONSTANT=3))
    layers = [
        SimpleNamespace(type=kind, num_outputs=1, get_output=lambda _, n=n: SimpleNamespace(name=n))
        for kind, n in ((0, "a"), (1, "attention"), (0, "(Unnamed Layer* 7)"), (0, "logits"))
    ]
    network = SimpleNamespace(num_layers=len(layers), get_layer=layers.__getitem__)
    spec: Any = SimpleNamespace(outputs=[SimpleNamespace(name="logits")])
    assert runners._list_markable(module, network, spec) == ["logits", "a"]
