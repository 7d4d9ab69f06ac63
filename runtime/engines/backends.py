"""Backends, which run the graphs of a bundle: one row for each."""

from collections.abc import Callable
from functools import partial

from medusa_trt.errors import EngineError
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.engines.base import Engine
from medusa_trt.runtime.engines.ort_cpu import OrtEngine
from medusa_trt.runtime.engines.ort_cuda import OrtCudaEngine
from medusa_trt.runtime.engines.tensorrt import TrtEngine

_OpenEngine = Callable[[Bundle, int, int, int | None], Engine]
"""Opens an engine from a bundle, the capacity, the batch size and the number of threads."""


def _open_ort_cpu(
    bundle: Bundle, capacity: int, batch_size: int, num_threads: int | None
) -> Engine:
    return OrtEngine(bundle, capacity=capacity, batch_size=batch_size, num_threads=num_threads)


def _open_on_gpu(open_engine: Callable[..., Engine]) -> _OpenEngine:
    """Adapts an engine that takes no number of threads."""
    return lambda bundle, capacity, batch_size, _: open_engine(
        bundle, capacity=capacity, batch_size=batch_size
    )


BACKENDS: dict[str, _OpenEngine] = {
    "ort-cpu": _open_ort_cpu,
    "ort-cuda": _open_on_gpu(OrtCudaEngine),
    "tensorrt": _open_on_gpu(partial(TrtEngine, product="tensorrt")),
    "tensorrt-rtx": _open_on_gpu(partial(TrtEngine, product="tensorrt-rtx")),
}

_BACKEND_OF_TARGET = {"tensorrt-jetson": "tensorrt"}
"""Backend of each target whose name differs from its backend's."""


def engine_from_backend(
    backend: str | None,
    bundle: Bundle,
    *,
    capacity: int,
    batch_size: int,
    num_threads: int | None,
) -> Engine:
    """Creates the engine of a backend.

    Args:
        backend: name of the backend; by default the one of the bundle's target.
        bundle: an opened bundle.
        capacity: number of rows in a KV cache slot.
        batch_size: number of sequences in one step.
        num_threads: threads for one step; only the engine on the CPU uses it.

    Raises:
        EngineError: the backend does not exist, or its engine cannot be created.
    """
    target = bundle.manifest.target.name
    name = backend or _BACKEND_OF_TARGET.get(target, target)
    if name not in BACKENDS:
        raise EngineError(f"unknown backend {name!r}: choose from {', '.join(BACKENDS)}")
    return BACKENDS[name](bundle, capacity, batch_size, num_threads)
