"""What runs a bundle's graphs: one row a backend."""

from typing import Protocol

from medusa_trt.errors import EngineError
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.engines.base import Engine
from medusa_trt.runtime.engines.engine_record import Product
from medusa_trt.runtime.engines.ort_cpu import OrtEngine
from medusa_trt.runtime.engines.ort_cuda import OrtCudaEngine
from medusa_trt.runtime.engines.tensorrt import TrtEngine


class _Opener(Protocol):
    def __call__(
        self, bundle: Bundle, *, capacity: int, batch_size: int, num_threads: int | None
    ) -> Engine: ...


def _ort_cpu(bundle: Bundle, *, capacity: int, batch_size: int, num_threads: int | None) -> Engine:
    return OrtEngine(bundle, capacity=capacity, batch_size=batch_size, num_threads=num_threads)


def _ort_cuda(bundle: Bundle, *, capacity: int, batch_size: int, num_threads: int | None) -> Engine:
    return OrtCudaEngine(bundle, capacity=capacity, batch_size=batch_size)


def _tensorrt(product: Product) -> _Opener:
    def opened(
        bundle: Bundle, *, capacity: int, batch_size: int, num_threads: int | None
    ) -> Engine:
        return TrtEngine(bundle, product=product, capacity=capacity, batch_size=batch_size)

    return opened


BACKENDS: dict[str, _Opener] = {
    "ort-cpu": _ort_cpu,
    "ort-cuda": _ort_cuda,
    "tensorrt": _tensorrt("tensorrt"),
    "tensorrt-rtx": _tensorrt("tensorrt-rtx"),
}

_OF_TARGET = {"tensorrt-jetson": "tensorrt"}
"""Backends of targets that are named otherwise."""


def engine_from_backend(
    backend: str | None,
    bundle: Bundle,
    *,
    capacity: int,
    batch_size: int,
    num_threads: int | None,
) -> Engine:
    """Creates a backend's engine.

    Args:
        backend: its name; the one of the bundle's target by default.
        bundle: an opened bundle.
        capacity: rows of a KV cache slot.
        batch_size: sequences that can be stepped together.
        num_threads: threads for one step, where the engine runs on the CPU.

    Raises:
        EngineError: there is no such backend, or its engine cannot be created.
    """
    target = bundle.manifest.target.name
    name = backend or _OF_TARGET.get(target, target)
    if name not in BACKENDS:
        raise EngineError(f"unknown backend {name!r}: choose from {', '.join(BACKENDS)}")
    return BACKENDS[name](bundle, capacity=capacity, batch_size=batch_size, num_threads=num_threads)
