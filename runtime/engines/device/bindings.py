"""Graphs with their tensors bound to device memory, which is kept from step to step."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from medusa_trt.errors import EngineError
from medusa_trt.runtime.engines.base import VerifyOutputs
from medusa_trt.runtime.engines.device.memory import Cuda
from medusa_trt.tree_configs import MedusaTree

_MAX_BINDINGS = 16


class Executable(Protocol):
    """A graph with fixed shapes and addresses, which runs many times."""

    def takes(self, name: str) -> bool:
        """Returns whether the graph has this input; with a merged tree it has no tree inputs."""
        ...

    def bind_input(self, name: str, address: int, shape: tuple[int, ...], dtype: str) -> None:
        """Binds an input to an address in device memory.

        Raises:
            EngineError: the graph does not take this shape.
        """
        ...

    def bind_host_input(self, name: str, address: int, shape: tuple[int, ...], dtype: str) -> None:
        """Binds an input that the host reads to an address in host memory; see `bind_input`."""
        ...

    def bind_output(self, name: str, address: int, shape: tuple[int, ...], dtype: str) -> None:
        """Binds an output to an address in device memory; see `bind_input`."""
        ...

    def enqueue(self) -> None:
        """Starts a run on the stream, and does not wait for its end.

        Raises:
            EngineError: the run failed.
        """
        ...


class Executor(Protocol):
    """Makes executables of a bundle's graphs, which run on the device's stream."""

    @property
    def is_capturable(self) -> bool:
        """Whether the engine may record runs as a CUDA graph."""
        ...

    def open(self, graph: str, tree: MedusaTree | None) -> Executable:
        """Makes an executable without bindings; that of the verify graph is for one tree.

        Raises:
            EngineError: the memory is full, or the tree has too many nodes.
        """
        ...

    def close(self) -> None:
        """Frees everything; no run may be in progress."""
        ...


@dataclass(slots=True)
class BoundGraph:
    """An executable with all its tensors bound.

    Attributes:
        executable: made by the executor.
        tree: kept alive, because `id(tree)` is in the key of the binding.
        inputs: pinned arrays to write before a run.
        uploads: device addresses of the inputs that every run copies to the device.
        downloads: pinned arrays that every run fills, with their device addresses.
        addresses: device addresses of all outputs.
        memory: device memory to free with the binding.
        pinned: pinned memory to free with the binding.
        graph: the run as a CUDA graph, from the second run on.
        num_runs: number of runs so far.
        verify_outputs: outputs of a verify step; their arrays are views of `downloads`.
    """

    executable: Executable
    tree: MedusaTree | None
    inputs: dict[str, NDArray[Any]] = field(default_factory=dict)
    uploads: dict[str, int] = field(default_factory=dict)
    downloads: dict[str, tuple[NDArray[Any], int]] = field(default_factory=dict)
    addresses: dict[str, int] = field(default_factory=dict)
    memory: list[int] = field(default_factory=list)
    pinned: list[NDArray[Any]] = field(default_factory=list)
    graph: Any = None
    num_runs: int = 0
    verify_outputs: VerifyOutputs | None = None


class Bindings:
    """Makes and runs the bindings of one executor, and keeps those used last."""

    def __init__(self, cuda: Cuda, executor: Executor) -> None:
        """Takes the device, and the executor, which `close` closes."""
        self._cuda = cuda
        self._executor: Executor | None = executor
        self._kept: dict[tuple[object, ...], BoundGraph] = {}

    @property
    def executor(self) -> Executor:
        """The executor of the graphs.

        Raises:
            EngineError: the engine is closed.
        """
        if self._executor is None:
            raise EngineError("the engine is closed: open a new session")
        return self._executor

    @contextmanager
    def open(
        self, key: tuple[object, ...], graph: str, tree: MedusaTree | None = None
    ) -> Iterator[BoundGraph]:
        """Opens a graph for the block to bind its tensors, then keeps it; see `get`.

        Where there are too many bindings, the one unused for longest is freed.
        """
        bound = BoundGraph(self.executor.open(graph, tree), tree)
        try:
            yield bound
        except BaseException:
            self._cuda.synchronize()
            self._release(bound)
            raise
        while len(self._kept) >= _MAX_BINDINGS:
            self._cuda.synchronize()
            self._release(self._kept.pop(next(iter(self._kept))))
        self._kept[key] = bound

    def get(self, key: tuple[object, ...]) -> BoundGraph | None:
        """Returns a kept binding, and marks it as the one used last."""
        bound = self._kept.pop(key, None)
        if bound is not None:
            self._kept[key] = bound
        return bound

    def bind_input(
        self, bound: BoundGraph, name: str, array: NDArray[Any], *, every_run: bool = False
    ) -> None:
        """Binds an input; with `every_run`, each run copies its array in `BoundGraph.inputs`."""
        pinned = self._allocate_pinned(bound, array.shape, array.dtype)
        pinned[...] = array
        address = self._cuda.allocate(array.nbytes)
        bound.memory.append(address)
        bound.executable.bind_input(name, address, array.shape, array.dtype.name)
        if every_run:
            bound.inputs[name] = pinned
            bound.uploads[name] = address
        else:
            self._cuda.upload(address, pinned)

    def bind_host_input(self, bound: BoundGraph, name: str, array: NDArray[Any]) -> None:
        """Binds an input that each run reads from its array in `BoundGraph.inputs`, on the host."""
        bound.inputs[name] = self._allocate_pinned(bound, array.shape, array.dtype)
        address = bound.inputs[name].ctypes.data
        bound.executable.bind_host_input(name, address, array.shape, array.dtype.name)

    def bind_output(
        self, bound: BoundGraph, name: str, shape: tuple[int, ...], dtype: str, *, download: bool
    ) -> None:
        """Binds an output; with `download`, each run copies it to `BoundGraph.downloads`."""
        address = self._cuda.allocate(int(np.prod(shape)) * np.dtype(dtype).itemsize)
        bound.memory.append(address)
        bound.addresses[name] = address
        bound.executable.bind_output(name, address, shape, dtype)
        if download:
            bound.downloads[name] = self._allocate_pinned(bound, shape, dtype), address

    def run(self, bound: BoundGraph) -> dict[str, NDArray[Any]]:
        """Runs a graph, and waits for the downloaded outputs, which it returns by name."""
        bound.num_runs += 1
        if bound.num_runs == 2 and self.executor.is_capturable:
            # The first run did all work that is done only once, so the second run can be captured.
            bound.graph = self._cuda.capture(lambda: self._enqueue(bound))
        if bound.graph is not None:
            self._cuda.launch(bound.graph)
        else:
            self._enqueue(bound)
        self._cuda.synchronize()
        return {name: array for name, (array, _) in bound.downloads.items()}

    def close(self) -> None:
        """Frees the bindings, then the executor; a second call does nothing."""
        if self._executor is not None:
            self._cuda.synchronize()
            # Executables use objects that the executor frees, so they are released first.
            while self._kept:
                self._release(self._kept.popitem()[1])
            self._executor.close()
            self._executor = None

    def _enqueue(self, bound: BoundGraph) -> None:
        for name, address in bound.uploads.items():
            self._cuda.upload(address, bound.inputs[name])
        bound.executable.enqueue()
        for array, address in bound.downloads.values():
            self._cuda.download(array, address)

    def _allocate_pinned(
        self, bound: BoundGraph, shape: tuple[int, ...], dtype: Any
    ) -> NDArray[Any]:
        bound.pinned.append(self._cuda.allocate_pinned(shape, dtype))
        return bound.pinned[-1]

    def _release(self, bound: BoundGraph) -> None:
        """Frees the memory of a binding; after the last wait the device does not use it."""
        if bound.graph is not None:
            self._cuda.free_graph(bound.graph)
        for address in bound.memory:
            self._cuda.free(address)
        for array in bound.pinned:
            self._cuda.free_pinned(array)
