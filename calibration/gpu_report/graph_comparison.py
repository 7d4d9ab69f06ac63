"""Compares engines with their graphs by Polygraphy, and on a mismatch layer by layer."""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medusa_trt.calibration.gpu_report.feeds import (
    Feed,
    count_rows,
    find_missing_type,
    make_feed,
)
from medusa_trt.calibration.gpu_report.runners import (
    BuiltEngines,
    find_engines,
    make_runners,
    require_polygraphy,
)
from medusa_trt.errors import CalibrationError, describe_error
from medusa_trt.runtime.bundle import Bundle

COMPARED = ("verify", "heads", "reduce")
INPUTS_FOLDER = "inputs"

MAX_RELATIVE_ERROR = 0.05
"""Largest error of floats, relative to the reference's size: rounding gives less, a fault more."""

MIN_EQUAL = 0.8
"""Smallest share of equal integers: two nearly equal logits may change places by rounding."""

_MAX_LAYERS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorError:
    """How far a tensor is from the reference.

    Attributes:
        name: name of the tensor.
        error: root mean square of the difference over that of the reference; for integers the share
            of different ones.
        agrees: whether it is within the limits of this module.
    """

    name: str
    error: float
    agrees: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphComparison:
    """The comparison of one graph.

    Attributes:
        graph: its name.
        reason: why it was not compared; None if it was.
        failure: why it did not run; None if it ran.
        tested: what was tested, as "tensorrt".
        outputs: all its outputs.
        layers: the first tensors inside of it that differ, in its order, if outputs do.
        num_layers: number of tensors that were compared then.
        layers_reason: why tensors inside were not compared though outputs differ; else None.
        commands: how Polygraphy's command line repeats the comparison, in the report's folder.
    """

    graph: str
    reason: str | None = None
    failure: str | None = None
    tested: str = ""
    outputs: tuple[TensorError, ...] = ()
    layers: tuple[TensorError, ...] = ()
    num_layers: int = 0
    layers_reason: str | None = None
    commands: tuple[str, ...] = ()

    @property
    def agrees(self) -> bool:
        """Whether it ran, or could not be compared, and no output differs."""
        return self.failure is None and all(output.agrees for output in self.outputs)


def compare_graphs(bundle: Bundle, folder: Path) -> Iterator[GraphComparison]:
    """Compares each graph; for one that differs it writes the inputs below `folder`.

    Raises:
        CalibrationError: Polygraphy is not installed, or there are no engines for this machine.
    """
    require_polygraphy()
    engines = find_engines(bundle)
    for graph in COMPARED:
        if graph in bundle.manifest.graphs:
            yield compare_graph(bundle, graph, engines, folder)


def compare_graph(
    bundle: Bundle, graph: str, engines: BuiltEngines | None, folder: Path
) -> GraphComparison:
    """Compares one graph; see `compare_graphs`."""
    if (reason := _find_reason(bundle, graph, engines)) is not None:
        return GraphComparison(graph=graph, reason=reason)
    capacity = count_rows(bundle) if engines is None else engines.record.capacity
    feed = make_feed(bundle, graph, capacity)
    tested = ""
    failure: str | None = None
    outputs: tuple[TensorError, ...] = ()
    try:
        runners = make_runners(bundle, graph, engines)
        tested = runners[0].name
        outputs = tuple(_compare(runners, feed))
    except Exception as error:  # of Polygraphy, TensorRT or ONNX Runtime, without a common base
        failure = describe_error(error)
    comparison = GraphComparison(graph=graph, tested=tested, outputs=outputs, failure=failure)
    if comparison.agrees:
        return comparison
    commands = _save_inputs(bundle, graph, engines, feed, folder)
    if failure is not None:
        return replace(comparison, commands=commands)
    try:
        layers = _compare_layers(bundle, graph, engines, feed)
    except Exception as error:  # as above
        return replace(comparison, commands=commands, layers_reason=describe_error(error))
    differing = [layer for layer in layers if not layer.agrees]
    return replace(
        comparison,
        commands=commands,
        layers=tuple(differing[:_MAX_LAYERS]),
        num_layers=len(layers),
    )


def _find_reason(bundle: Bundle, graph: str, engines: BuiltEngines | None) -> str | None:
    """Finds out why a graph cannot be compared; None if it can."""
    if (missing := find_missing_type(bundle.manifest.graphs[graph])) is not None:
        return f"numpy has no {missing}, so Polygraphy cannot give it to ONNX Runtime"
    if engines is not None and graph == "verify" and engines.record.medusa_choices is not None:
        return "a tree is merged into the engine, and the graph has none"
    return None


def _compare(runners: tuple[Any, Any], feed: Feed) -> list[TensorError]:
    """Runs both runners on the same inputs, and compares the outputs that both have."""
    from polygraphy.comparator import Comparator

    errors: list[TensorError] = []

    def compare_outputs(tested: Any, reference: Any) -> "OrderedDict[str, bool]":
        shared = [name for name in reference if name in tested]
        errors.extend(measure_error(name, tested[name], reference[name]) for name in shared)
        return OrderedDict((error.name, error.agrees) for error in errors)

    results = Comparator.run(list(runners), data_loader=[feed])
    Comparator.compare_accuracy(results, compare_func=compare_outputs)
    if not errors:
        raise CalibrationError("the engine and the graph have no outputs in common")
    return errors


def measure_error(name: str, tested: NDArray[Any], reference: NDArray[Any]) -> TensorError:
    """Measures how far an array is from its reference."""
    if tested.shape != reference.shape:
        return TensorError(name=name, error=float("inf"), agrees=False)
    if reference.dtype.kind != "f":
        share = float(np.mean(tested != reference)) if reference.size else 0.0
        return TensorError(name=name, error=share, agrees=share <= 1 - MIN_EQUAL)
    expected, given = reference.astype(np.float64), tested.astype(np.float64)
    is_equal = (given == expected) | (np.isnan(given) & np.isnan(expected))
    with np.errstate(invalid="ignore"):  # infinities of both, which are equal
        difference = np.where(is_equal, 0.0, given - expected)
    size = float(np.sqrt(np.square(expected[np.isfinite(expected)]).sum()))
    rms = float(np.sqrt(np.square(difference).sum()))
    error = rms / size if size > 0 else rms
    return TensorError(name=name, error=error, agrees=bool(error <= MAX_RELATIVE_ERROR))


def _compare_layers(
    bundle: Bundle, graph: str, engines: BuiltEngines | None, feed: Feed
) -> list[TensorError]:
    """Compares all tensors inside a graph, in its order."""
    import onnx
    from polygraphy.backend.onnx import ModifyOutputs
    from polygraphy.constants import MARK_ALL

    model = onnx.load(bundle.graph_path(graph), load_external_data=False)
    names = [name for node in model.graph.node for name in node.output]
    marked = ModifyOutputs(model, outputs=MARK_ALL)().SerializeToString()
    errors = {
        error.name: error for error in _compare(make_runners(bundle, graph, engines, marked), feed)
    }
    return [errors[name] for name in names if name in errors]


def _save_inputs(
    bundle: Bundle, graph: str, engines: BuiltEngines | None, feed: Feed, folder: Path
) -> tuple[str, ...]:
    """Saves the inputs in Polygraphy's form.

    Returns:
        The commands that repeat the comparison in `folder`; BUNDLE stands for the bundle's.
    """
    from polygraphy.json import save_json

    (folder / INPUTS_FOLDER).mkdir(parents=True, exist_ok=True)
    inputs = Path(INPUTS_FOLDER) / f"{graph}.json"
    save_json([feed], str(folder / inputs))
    file = f"BUNDLE/{bundle.manifest.graphs[graph].file}"
    if bundle.manifest.target.operator_library:
        return ()  # Polygraphy's command line loads no libraries of operators.
    if engines is None:
        providers = "cuda" if bundle.manifest.target.name == "ort-cuda" else "cpu"
        tested = f"polygraphy run {file} --onnxrt --providers {providers}"
    else:
        engine = engines.folder.relative_to(bundle.path) / engines.record.engines[graph].file
        tested = f"polygraphy run BUNDLE/{engine.as_posix()} --model-type engine --trt"
        if engines.record.product == "tensorrt-rtx":
            tested = f"POLYGRAPHY_USE_TENSORRT_RTX=1 {tested} --allocation-strategy profile"
    outputs = f"{graph}_outputs.json"
    return (
        f"{tested} --load-inputs {inputs.as_posix()} --save-outputs {outputs}",
        f"polygraphy run {file} --onnxrt --load-inputs {inputs.as_posix()} "
        f"--load-outputs {outputs} --check-error-stat mean --rtol 0.05 --atol 0.05",
    )
