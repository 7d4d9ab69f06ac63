"""The engine on ONNX Runtime's CUDA provider."""

from collections.abc import Iterator
from importlib import import_module
from typing import Any

import numpy as np

from medusa_trt.errors import EngineError, require_extra
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.engines.device.engine import DeviceEngine
from medusa_trt.runtime.engines.device.memory import Cuda, close_on_error, import_cuda_runtime
from medusa_trt.runtime.engines.ort_session import BFLOAT16, make_session_options, open_session
from medusa_trt.tree_configs import MedusaTree

_PROVIDER = "CUDAExecutionProvider"
_ROW_MULTIPLE = 8
"""A cache slot has a multiple of this many rows, which aligns the rows of the mask.

The provider's fused attention needs that."""

_MAX_GRAPHS = 64
"""Largest number of recorded CUDA graphs; ONNX Runtime keeps them until its session ends."""

_NO_GRAPH = -1
"""ONNX Runtime's graph id for a run without a CUDA graph."""

_IS_RECORDED = {"verify": True, "heads": False, "reduce": False}
"""Whether the runs of each ONNX graph are recorded as CUDA graphs.

`TopK` copies sizes from host memory that the provider reuses after the run, so a recorded copy
could read the sizes of another batch there. Heads and reductions only launch a few kernels.
"""


class OrtCudaEngine(DeviceEngine):
    """Runs a bundle's graphs with ONNX Runtime on the first GPU.

    The provider runs on the engine's stream and does not wait. It records CUDA graphs itself. It
    refuses an ONNX graph in which a tensor goes through the host; the engine then raises an error
    when it is created.
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
            bundle: an opened bundle, exported for ort-cuda.
            capacity: least number of rows in a KV cache slot.
            batch_size: number of sequences in one step.
            module: the module `onnxruntime`; imported by default.
            cuda: the module of the CUDA runtime; the one of cuda-python by default.

        Raises:
            EngineError: the bundle was exported for another target, a library or a GPU is missing,
                or the provider does not accept a graph.
        """
        target = bundle.manifest.target
        if target.name != "ort-cuda":
            raise EngineError(
                f"the bundle was exported for {target.name}: export the model with "
                "--target ort-cuda"
            )
        if batch_size < 1:
            raise EngineError(f"batch_size is {batch_size}: it must be at least 1")
        module = module if module is not None else _import_onnxruntime()
        device = Cuda(cuda if cuda is not None else import_cuda_runtime())
        num_rows = -(-capacity // _ROW_MULTIPLE) * _ROW_MULTIPLE
        with close_on_error(device):
            executor = _OrtExecutor(bundle, module, device.stream)
            super().__init__(bundle, executor, device, capacity=num_rows, batch_size=batch_size)


class _OrtExecutor:
    """Makes I/O bindings; see `Executor`."""

    # Only the provider knows which of its own buffers a CUDA graph needs, so it records itself.
    is_capturable = False

    def __init__(self, bundle: Bundle, module: Any, stream: int) -> None:
        self._module = module
        self._graph_ids = iter(range(1, _MAX_GRAPHS + 1))
        self._sessions = {
            graph: _open_session(bundle, graph, module, stream, is_recorded)
            for graph, is_recorded in _IS_RECORDED.items()
            if graph in bundle.manifest.graphs
        }

    def open(self, graph: str, tree: MedusaTree | None) -> "_Binding":
        """See `Executor.open`."""
        del tree
        graph_ids = self._graph_ids if _IS_RECORDED[graph] else iter(())
        return _Binding(graph, self._sessions[graph], self._module, graph_ids)

    def close(self) -> None:
        """See `Executor.close`."""
        self._sessions.clear()


class _Binding:
    """An I/O binding; its second run is recorded as a CUDA graph, if an id is left for one."""

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
        except Exception as error:  # see `open_session`
            raise EngineError(f"ONNX Runtime failed in the {self._graph} graph: {error}") from error

    def _run_options(self, graph_id: int) -> Any:
        options = self._module.RunOptions()
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        options.add_run_config_entry("gpu_graph_id", str(graph_id))
        return options


def _element_type(dtype: str) -> Any:
    return BFLOAT16 if dtype == "bfloat16" else np.dtype(dtype).type


def _open_session(bundle: Bundle, graph: str, module: Any, stream: int, is_recorded: bool) -> Any:
    provider_options = {
        "device_id": "0",
        "user_compute_stream": str(stream),
        "enable_cuda_graph": str(int(is_recorded)),
    }
    options = make_session_options(module)
    path = bundle.graph_path(graph)
    session = open_session(module, path, options, _PROVIDER, provider_options)
    # Where the provider's own libraries are missing, ONNX Runtime only writes a line to its log.
    if _PROVIDER not in session.get_providers():
        raise EngineError(
            f"ONNX Runtime cannot use {_PROVIDER} here: install CUDA 13's libraries with "
            "pip install 'medusa-trt[ort-cuda]'"
        )
    return session


def _import_onnxruntime() -> Any:
    with require_extra("decoding", "ort-cuda", error_class=EngineError):
        module = import_module("onnxruntime")
    if _PROVIDER not in module.get_available_providers():
        raise EngineError(
            f"this onnxruntime has no {_PROVIDER}: pip uninstall onnxruntime, then "
            "pip install 'medusa-trt[ort-cuda]'"
        )
    module.preload_dlls(cudnn=False)
    return module
