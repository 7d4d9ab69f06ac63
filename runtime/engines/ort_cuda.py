"""The engine on ONNX Runtime's CUDA provider."""

import os
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import numpy as np

from medusa_trt.errors import EngineError
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.engines.device.engine import DeviceEngine
from medusa_trt.runtime.engines.device.memory import Cuda, closed_on_error, cuda_runtime
from medusa_trt.tree_configs import MedusaTree

_PROVIDER = "CUDAExecutionProvider"
_BFLOAT16 = 16  # ONNX's number of the type, which numpy lacks
_ROW_MULTIPLE = 8
"""Rows of a cache slot: the provider's fused attention wants the mask's rows aligned."""

_MAX_GRAPHS = 64
"""CUDA graphs that are recorded; ONNX Runtime keeps them until its session ends."""

_NO_GRAPH = -1

_RECORDS = {"verify": True, "heads": False, "reduce": False}
"""Whether a graph's runs become CUDA graphs.

`TopK` copies sizes from host memory that the provider uses again after the run, so a recorded copy
could find those of another batch size there. Heads and reductions are a handful of launches.
"""


class OrtCudaEngine(DeviceEngine):
    """Runs a bundle's graphs with ONNX Runtime on the first GPU.

    The provider works on the engine's stream and does not wait. It records CUDA graphs itself, and
    refuses to where a tensor would go through the host: such a graph is an error when the engine is
    made.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        capacity: int,
        batch_size: int = 1,
        module: Any = None,
        cuda: Any = None,
    ) -> None:
        """Loads the graphs.

        Args:
            bundle: one exported for ort-cuda.
            capacity: rows of a KV cache slot that must be there.
            batch_size: sequences that can be stepped together.
            module: ONNX Runtime; imported by default.
            cuda: the module of CUDA's runtime; cuda-python's by default.

        Raises:
            EngineError: the bundle is of another kind, the libraries or a GPU are missing, or the
                provider does not take a graph.
        """
        target = bundle.manifest.target
        if target.name != "ort-cuda":
            raise EngineError(
                f"the bundle was exported for {target.name}: export the model with "
                "--target ort-cuda"
            )
        if batch_size < 1:
            raise EngineError(f"batch_size is {batch_size}: it must be at least 1")
        module = module if module is not None else _imported()
        device = Cuda(cuda if cuda is not None else cuda_runtime())
        rows = -(-capacity // _ROW_MULTIPLE) * _ROW_MULTIPLE
        with closed_on_error(device):
            executor = _OrtExecutor(bundle, module, device.stream)
            super().__init__(bundle, executor, device, capacity=rows, batch_size=batch_size)


class _OrtExecutor:
    """Makes bindings."""

    is_capturable = False  # the provider's own graphs know which of its buffers must stay

    def __init__(self, bundle: Bundle, module: Any, stream: int) -> None:
        self._module = module
        self._graph_ids = iter(range(1, _MAX_GRAPHS + 1))
        self._sessions = {
            graph: _session(
                bundle,
                graph,
                module,
                {
                    "device_id": "0",
                    "user_compute_stream": str(stream),
                    "enable_cuda_graph": str(int(records)),
                },
            )
            for graph, records in _RECORDS.items()
        }

    def open(self, graph: str, tree: MedusaTree | None) -> "_Binding":
        """See `Executor.open`."""
        del tree
        graph_ids = self._graph_ids if _RECORDS[graph] else iter(())
        return _Binding(graph, self._sessions[graph], self._module, graph_ids)

    def close(self) -> None:
        """See `Executor.close`."""
        self._sessions.clear()


class _Binding:
    """An I/O binding; from its second run on a CUDA graph where numbers are left for one."""

    def __init__(self, graph: str, session: Any, module: Any, graph_ids: Iterator[int]) -> None:
        self._graph, self._session = graph, session
        self._module, self._graph_ids = module, graph_ids
        self._binding = session.io_binding()
        self._options = self._run_options(_NO_GRAPH)
        self._num_runs = 0

    def takes(self, name: str) -> bool:
        """See `Executable.takes`."""
        return True

    def bind_input(self, name: str, address: int, shape: tuple[int, ...], dtype: str) -> None:
        """See `Executable.bind_input`."""
        self._binding.bind_input(name, "cuda", 0, _element_type(dtype), shape, address)

    def bind_host_input(self, name: str, address: int, shape: tuple[int, ...], dtype: str) -> None:
        """See `Executable.bind_host_input`."""
        self._binding.bind_input(name, "cpu", 0, _element_type(dtype), shape, address)

    def bind_output(self, name: str, address: int, shape: tuple[int, ...], dtype: str) -> None:
        """See `Executable.bind_output`."""
        self._binding.bind_output(name, "cuda", 0, _element_type(dtype), shape, address)

    def enqueue(self) -> None:
        """See `Executable.enqueue`."""
        self._num_runs += 1
        if self._num_runs == 2:
            self._options = self._run_options(next(self._graph_ids, _NO_GRAPH))
        try:
            self._session.run_with_iobinding(self._binding, self._options)
        except Exception as error:  # ONNX Runtime raises many pybind classes with no common base
            raise EngineError(f"ONNX Runtime failed in the {self._graph} graph: {error}") from error

    def _run_options(self, graph_id: int) -> Any:
        options = self._module.RunOptions()
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        options.add_run_config_entry("gpu_graph_id", str(graph_id))
        return options


def _element_type(dtype: str) -> Any:
    return _BFLOAT16 if dtype == "bfloat16" else np.dtype(dtype).type


def _session(bundle: Bundle, graph: str, module: Any, provider_options: dict[str, str]) -> Any:
    options = module.SessionOptions()
    options.log_severity_level = 3
    options.enable_mem_pattern = False
    path = bundle.graph_path(graph)
    try:
        session = module.InferenceSession(
            os.fspath(path),
            options,
            providers=[(_PROVIDER, provider_options)],
            enable_fallback=False,
        )
    except Exception as error:  # see _Binding.enqueue
        raise EngineError(f"ONNX Runtime cannot load {path} for CUDA: {error}") from error
    # Where the provider's own libraries are missing, only a line in the log says so.
    if _PROVIDER not in session.get_providers():
        raise EngineError(
            f"ONNX Runtime cannot use {_PROVIDER} here: install CUDA 13's libraries with "
            "pip install 'medusa-trt[ort-cuda]'"
        )
    return session


def _imported() -> Any:
    try:
        module = import_module("onnxruntime")
    except ImportError as error:
        raise EngineError(
            "onnxruntime-gpu is not installed: pip install 'medusa-trt[ort-cuda]'"
        ) from error
    if _PROVIDER not in module.get_available_providers():
        raise EngineError(
            f"this onnxruntime has no {_PROVIDER}: pip uninstall onnxruntime, then "
            "pip install 'medusa-trt[ort-cuda]'"
        )
    module.preload_dlls(cudnn=False)
    return module
