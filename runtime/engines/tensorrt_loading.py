"""Loads the engines of a bundle with TensorRT or TensorRT-RTX, and checks them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medusa_trt.errors import EngineError
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.engines.device.memory import Cuda
from medusa_trt.runtime.engines.engine_record import (
    WEIGHTLESS_ENGINES,
    EngineRecord,
    Machine,
    Product,
    check_engines,
    find_graph_of_engine,
    find_mismatches,
    list_engine_folders,
    record_from_folder,
)
from medusa_trt.runtime.manifest import TensorSpec

_DATA_TYPES = {
    "float": "FLOAT",
    "float16": "HALF",
    "bfloat16": "BF16",
    "int64": "INT64",
    "bool": "BOOL",
}
"""Name in TensorRT's `DataType`, by type in a bundle's manifest."""


@dataclass(frozen=True, slots=True)
class LoadedEngines:
    """Deserialized engines by name, with their record and TensorRT's runtime."""

    record: EngineRecord
    engines: dict[str, Any]
    runtime: Any


def load_engines(
    bundle: Bundle,
    folder: Path | None,
    product: Product,
    module: Any,
    cuda: Cuda,
    batch_size: int,
) -> LoadedEngines:
    """Loads the engines of a bundle, and checks that they fit it and this machine.

    Args:
        bundle: the bundle that the engines were built from.
        folder: folder of the engines; by default the one in the bundle that fits this machine.
        product: the product of `module`.
        module: `tensorrt` or `tensorrt_rtx`.
        cuda: the GPU.
        batch_size: number of KV cache slots; streamed weights leave memory for them.

    Raises:
        EngineError: no engines fit this machine (the message names the differences), or they
            are damaged or were built from another bundle.
    """
    machine = Machine(product, str(module.__version__), cuda.compute_capability)
    folder = folder or _choose_folder(bundle, machine)
    record = record_from_folder(folder)
    if differences := find_mismatches(record, machine):
        raise EngineError(
            f"the engines in {folder} do not fit this machine: {'; '.join(differences)}. "
            "Build them again here with medusa-trt build"
        )
    check_engines(record, folder, bundle)
    runtime = module.Runtime(module.Logger(module.Logger.ERROR))
    if record.any_version:
        runtime.engine_host_code_allowed = True
    engines = {}
    for name, spec in record.engines.items():
        path = folder / spec.file
        # The file is mapped, because it may be as large as the host's memory.
        engine = runtime.deserialize_cuda_engine(np.memmap(path, mode="r"))
        if engine is None:
            raise EngineError(
                f"{product} {machine.version} cannot load {path}: build the engines again here"
            )
        has_weights = name not in WEIGHTLESS_ENGINES
        if record.stripped and has_weights:
            _refit(module, engine, bundle.graph_path(find_graph_of_engine(name)))
        if record.weight_streaming and has_weights:
            # TensorRT proposes the memory that is free now; the KV cache is not allocated yet.
            free_bytes = engine.get_weight_streaming_automatic_budget()
            num_slabs = 1 if bundle.manifest.target.cache_in_place else 2
            cache_bytes = num_slabs * bundle.count_cache_bytes(record.capacity * batch_size)
            engine.weight_streaming_budget_v2 = max(0, free_bytes - cache_bytes)
        _check_tensors(module, engine, [*spec.inputs, *spec.outputs], path)
        engines[name] = engine
    return LoadedEngines(record, engines, runtime)


def _choose_folder(bundle: Bundle, machine: Machine) -> Path:
    folders = list_engine_folders(bundle)
    if not folders:
        raise EngineError(f"{bundle.path} has no engines: make them with medusa-trt build")
    reasons = {}
    for folder in folders:
        differences = find_mismatches(record_from_folder(folder), machine)
        if not differences:
            return folder
        reasons[folder.name] = "; ".join(differences)
    listed = ". ".join(f"{name}: {reason}" for name, reason in reasons.items())
    raise EngineError(
        f"no engines in {bundle.path} fit this machine. {listed}. "
        "Build them again here with medusa-trt build"
    )


def _refit(module: Any, engine: Any, graph: Path) -> None:
    """Loads the weights of a stripped engine from the ONNX file."""
    logger = module.Logger(module.Logger.ERROR)
    refitter = module.Refitter(engine, logger)
    parser = module.OnnxParserRefitter(refitter, logger)
    if not parser.refit_from_file(str(graph)) or not refitter.refit_cuda_engine():
        raise EngineError(f"the weights of {graph} do not fit the engine: build it again")


def _check_tensors(module: Any, engine: Any, specs: list[TensorSpec], path: Path) -> None:
    engine_types = {
        name: engine.get_tensor_dtype(name)
        for name in map(engine.get_tensor_name, range(engine.num_io_tensors))
    }
    recorded_types = {
        spec.name: getattr(module.DataType, _DATA_TYPES[spec.dtype]) for spec in specs
    }
    for name in sorted(engine_types.keys() | recorded_types.keys()):
        if engine_types.get(name) != recorded_types.get(name):
            raise EngineError(
                f"{path}: tensor {name} is {engine_types.get(name)}, the record says "
                f"{recorded_types.get(name)}: build the engines again"
            )
