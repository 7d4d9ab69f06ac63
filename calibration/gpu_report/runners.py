"""Polygraphy's runners of a graph: what is tested, and ONNX Runtime on the CPU as the reference."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from medusa_trt.errors import CalibrationError, require_extra
from medusa_trt.export.targets import TARGETS
from medusa_trt.export.tensorrt.job import EngineBuild
from medusa_trt.export.tensorrt.network import make_config, make_profiles, parse_network
from medusa_trt.export.tensorrt.options import BuildOptions
from medusa_trt.export.tensorrt.products import PRODUCTS
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.engines.device.memory import read_compute_capability
from medusa_trt.runtime.engines.engine_record import (
    MODULES,
    EngineRecord,
    Machine,
    Product,
    find_mismatches,
    list_engine_folders,
    record_from_folder,
)
from medusa_trt.runtime.engines.operators import require_library
from medusa_trt.runtime.engines.ort_session import make_session_options
from medusa_trt.runtime.manifest import GraphSpec

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
_FOLDER_ENTRY = "session.model_external_initializers_file_folder_path"


@dataclass(frozen=True, slots=True)
class BuiltEngines:
    """Engines that fit this machine: their folder and their record."""

    folder: Path
    record: EngineRecord


def require_polygraphy() -> None:
    """Checks that Polygraphy can be imported, before anything is measured.

    Raises:
        CalibrationError: it is not installed.
    """
    with require_extra("comparing graphs", "gpu-report", error_class=CalibrationError):
        import_module("polygraphy")


def find_engines(bundle: Bundle) -> BuiltEngines | None:
    """Finds the engines of a bundle that fit this machine; None where its target has none.

    Raises:
        CalibrationError: there are none that fit.
    """
    target = TARGETS[bundle.manifest.target.name]
    if target.product is None:
        return None
    product = PRODUCTS[target.product]
    version = str(product.load().__version__)
    machine = Machine(target.product, version, read_compute_capability() or "none")
    for folder in list_engine_folders(bundle):
        record = record_from_folder(folder)
        if not find_mismatches(record, machine):
            return BuiltEngines(folder, record)
    raise CalibrationError(
        f"{bundle.path} has no engines for {target.product} {version} and compute capability "
        f"{machine.compute_capability}: build them with medusa-trt build"
    )


def make_runners(
    bundle: Bundle, graph: str, engines: BuiltEngines | None, marked: bytes | None = None
) -> tuple[Any, Any]:
    """Makes the runner that is tested and the one of the reference.

    A bundle for ort-cpu is tested with ONNX Runtime's optimizations against itself without them.

    Args:
        bundle: the bundle.
        graph: name of the graph.
        engines: its engines; None for a target of ONNX Runtime.
        marked: the graph with more outputs, as ONNX; a marked engine is built for it.
    """
    from polygraphy.backend.onnxrt import OnnxrtRunner

    reference = OnnxrtRunner(
        _make_session_loader(bundle, graph, CPU, marked, is_optimized=False), name="reference"
    )
    if engines is not None:
        return _make_engine_runner(bundle, graph, engines, marked is not None), reference
    provider = CUDA if bundle.manifest.target.name == "ort-cuda" else CPU
    return OnnxrtRunner(
        _make_session_loader(bundle, graph, provider, marked, is_optimized=True), name=provider
    ), reference


def _make_session_loader(
    bundle: Bundle, graph: str, provider: str, model: bytes | None, *, is_optimized: bool
) -> Callable[[], Any]:
    """Makes a function that opens a session, as `OnnxrtRunner` takes it."""

    def load() -> Any:
        with require_extra("comparing graphs", "ort-cpu", error_class=CalibrationError):
            import onnxruntime
        options = make_session_options(onnxruntime)
        if bundle.manifest.target.operator_library:
            options.register_custom_ops_library(os.fspath(require_library()))
        if not is_optimized:
            level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
            options.graph_optimization_level = level
        source = os.fspath(bundle.graph_path(graph)) if model is None else model
        if model is not None:
            options.add_session_config_entry(_FOLDER_ENTRY, os.fspath(bundle.path))
        return onnxruntime.InferenceSession(source, options, providers=[provider])

    return load


def _make_engine_runner(bundle: Bundle, graph: str, engines: BuiltEngines, is_marked: bool) -> Any:
    """Makes the runner of an engine, built anew with all its tensors as outputs where asked."""
    backend = import_backend(engines.record.product)
    path = engines.folder / engines.record.engines[graph].file
    engine = (
        backend.EngineFromBytes(lambda: build_marked_engine(bundle, graph, engines.record))
        if is_marked
        else backend.EngineFromPath(os.fspath(path))
    )
    # Our engines for TensorRT-RTX leave the memory of a run to the caller.
    strategy = "profile" if engines.record.product == "tensorrt-rtx" else None
    return backend.TrtRunner(engine, name=engines.record.product, allocation_strategy=strategy)


def import_backend(product: Product) -> Any:
    """Imports Polygraphy's module for TensorRT, which keeps to the first product of a process."""
    import polygraphy.config

    polygraphy.config.USE_TENSORRT_RTX = product == "tensorrt-rtx"
    return import_module("polygraphy.backend.trt")


def build_marked_engine(
    bundle: Bundle, graph: str, record: EngineRecord, capabilities: tuple[str, ...] = ()
) -> bytes:
    """Builds an engine of which the graph's tensors are outputs; its kernels may be other ones.

    Raises:
        CalibrationError: TensorRT refuses it.
    """
    backend = import_backend(record.product)
    module = import_module(MODULES[record.product])
    options = BuildOptions(
        target=bundle.manifest.target.name,
        max_length=int(record.options["max_length"] or bundle.manifest.model.max_length),
        max_tree_nodes=int(record.options["max_tree_nodes"] or bundle.tree.num_nodes),
        compute_capabilities=capabilities,
    )
    build = EngineBuild(bundle, options, PRODUCTS[record.product], module, print)
    builder = module.Builder(build.logger)
    spec = bundle.manifest.graphs[graph]
    network, parser = parse_network(build, builder, spec, is_merged=False)
    names = _list_markable(module, network, spec)
    backend.ModifyNetworkOutputs((builder, network, parser), outputs=names)()
    profiles = make_profiles(build, graph, spec, is_merged=False)
    config = make_config(build, builder, profiles, has_weights=graph != "reduce")
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        last = build.logger.errors[-1] if build.logger.errors else "no reason was given"
        raise CalibrationError(f"TensorRT builds no engine of all tensors of {graph}: {last}")
    return bytes(memoryview(plan))


def _list_markable(module: Any, network: Any, spec: GraphSpec) -> list[str]:
    """Lists the tensors that may be outputs, the graph's outputs first.

    TensorRT refuses those at the borders of attention, which it treats as a loop, and names layers
    that the graph does not have "(Unnamed Layer ...)".
    """
    kinds = ("SHAPE", "CONSTANT", "ATTENTION_INPUT", "ATTENTION_OUTPUT")
    refused = [getattr(module.LayerType, kind, None) for kind in kinds]
    names = [tensor.name for tensor in spec.outputs]
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type not in refused:
            tensors = [layer.get_output(number) for number in range(layer.num_outputs)]
            names += [tensor.name for tensor in tensors if tensor is not None]
    return [name for name in dict.fromkeys(names) if not name.startswith("(")]
