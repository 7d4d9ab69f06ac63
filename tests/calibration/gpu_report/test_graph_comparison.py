"""Comparisons by Polygraphy, with ONNX Runtime on both sides."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medusa_trt.calibration.gpu_report import graph_comparison
from medusa_trt.calibration.gpu_report.feeds import make_feed
from medusa_trt.calibration.gpu_report.graph_comparison import (
    compare_graph,
    compare_graphs,
    measure_error,
)
from medusa_trt.calibration.gpu_report.runners import make_runners
from medusa_trt.runtime.bundle import Bundle

pytest.importorskip("polygraphy", reason="polygraphy is not installed: the extra gpu-report")


def test_graphs_agree_with_themselves(tiny_bundle: Bundle, tmp_path: Path) -> None:
    comparisons = list(compare_graphs(tiny_bundle, tmp_path))
    assert [each.graph for each in comparisons] == ["verify", "heads", "reduce"]
    for each in comparisons:
        outputs = [tensor.name for tensor in tiny_bundle.manifest.graphs[each.graph].outputs]
        assert each.agrees and [output.name for output in each.outputs] == outputs
        assert each.reason is None and not each.commands
    assert not list(tmp_path.iterdir()), "inputs are only kept for what differs"


def disturb(monkeypatch: pytest.MonkeyPatch, *wrong: str) -> None:
    """Makes what is tested give double the values of some tensors."""

    def make_disturbed(*arguments: Any) -> tuple[Any, Any]:
        tested, reference = make_runners(*arguments)
        infer = tested.infer

        def infer_wrongly(*given: Any, **options: Any) -> Any:
            outputs = infer(*given, **options)
            return {n: 2 * v if n in wrong else v for n, v in outputs.items()}

        tested.infer = infer_wrongly
        return tested, reference

    monkeypatch.setattr(graph_comparison, "make_runners", make_disturbed)


def test_a_fault_is_found_inside_and_can_be_repeated(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnx
    from polygraphy.json import load_json

    nodes = onnx.load(tiny_bundle.graph_path("reduce"), load_external_data=False).graph.node
    inputs = next(node.input for node in nodes if "entropy" in node.output)
    inner = next(name for node in nodes for name in node.output if name in inputs)
    disturb(monkeypatch, inner, "entropy")
    compared = compare_graph(tiny_bundle, "reduce", None, tmp_path)
    assert not compared.agrees
    assert [output.name for output in compared.outputs if not output.agrees] == ["entropy"]
    assert [layer.name for layer in compared.layers] == [inner, "entropy"]
    assert compared.num_layers > 20 and compared.layers_reason is None
    (saved,) = load_json(str(tmp_path / "inputs/reduce.json"))
    for name, array in make_feed(tiny_bundle, "reduce", 0).items():
        np.testing.assert_array_equal(saved[name], array)
    assert all("--load-inputs inputs/reduce.json" in command for command in compared.commands)


def test_what_does_not_run_is_recorded(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> tuple[Any, Any]:
        raise RuntimeError("no such kernel\nin this build")

    monkeypatch.setattr(graph_comparison, "make_runners", fail)
    compared = compare_graph(tiny_bundle, "heads", None, tmp_path)
    assert not compared.agrees and compared.failure == "no such kernel in this build"
    assert (tmp_path / "inputs/heads.json").is_file()


def test_errors_are_relative_and_equal_infinities_are_no_error() -> None:
    reference = np.array([3.0, -np.inf, 4.0, np.nan])
    assert measure_error("a", reference, reference).error == 0
    changed = measure_error("a", np.array([3.0, -np.inf, 4.5, np.nan]), reference)
    assert changed.error == pytest.approx(0.1) and not changed.agrees
    assert not measure_error("a", np.array([3.0, 1.0, 4.0, np.nan]), reference).agrees
    assert not measure_error("a", np.full(4, np.nan), np.ones(4)).agrees
    assert not measure_error("a", np.ones(3), np.ones(4)).agrees
    numbers = np.arange(10)
    assert measure_error("b", numbers + (numbers == 3), numbers).error == pytest.approx(0.1)
    assert not measure_error("b", numbers + (numbers < 3), numbers).agrees
