"""Graphs with their tensors bound in device memory, kept from step to step."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medusa_trt.errors import EngineError
from medusa_trt.runtime.engines.base import VerifyOutputs
from medusa_trt.runtime.engines.device.executor import Executable, Executor
from medusa_trt.runtime.engines.device.memory import Cuda
from medusa_trt.tree_configs import MedusaTree

_MAX_BINDINGS = 16


@dataclass(slots=True)
class Bound:
    """An executable with all its tensors bound.

    Attributes:
        executable: the executor's.
        tree: kept alive, since the binding is found by its identity.
        inputs: pinned arrays to write before a run.
        uploads: addresses on the device of those inputs that every run copies there.
        downloads: pinned arrays that every run fills, with their addresses on the device.
        addresses: of all outputs.
        memory: all device memory of it.
        pinned: all pinned memory of it.
        graph: all of a run as a CUDA graph, from the second run on.
        num_runs: how often it ran.
        outputs_of_verify: of a verify step, made of `downloads` once.
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
    outputs_of_verify: VerifyOutputs | None = None


class Bindings:
    """Makes, runs and keeps the youngest bindings of one executor."""

    def __init__(self, cuda: Cuda, executor: Executor) -> None:
        """Takes the device and the executor, which `close` frees."""
        self._cuda = cuda
        self._executor: Executor | None = executor
        self._kept: dict[tuple[object, ...], Bound] = {}

    @property
    def executor(self) -> Executor:
        """Of the graphs.

        Raises:
            EngineError: it was closed.
        """
        if self._executor is None:
            raise EngineError("the engine is closed: open a new session")
        return self._executor

    @contextmanager
    def new(self, graph: str, tree: MedusaTree | None = None) -> Iterator[Bound]:
        """An executable of a graph, nothing bound yet; freed where the block cannot bind it."""
        bound = Bound(self.executor.open(graph, tree), tree)
        try:
            yield bound
        except BaseException:
            self._cuda.synchronize()
            self._release(bound)
            raise

    def found(self, key: tuple[object, ...]) -> Bound | None:
        """A binding that was kept, now the youngest."""
        bound = self._kept.pop(key, None)
        if bound is not None:
            self._kept[key] = bound
        return bound

    def keep(self, key: tuple[object, ...], bound: Bound) -> None:
        """Keeps a binding, and frees the oldest one where there are too many."""
        while len(self._kept) >= _MAX_BINDINGS:
            self._cuda.synchronize()
            self._release(self._kept.pop(next(iter(self._kept))))
        self._kept[key] = bound

    def input(
        self, bound: Bound, name: str, array: NDArray[Any], *, every_run: bool = False
    ) -> None:
        """Binds an input; with `every_run` what is in `Bound.inputs` is copied at each run."""
        pinned = self._pinned(bound, array.shape, array.dtype)
        pinned[...] = array
        address = self._cuda.allocate(array.nbytes)
        bound.memory.append(address)
        bound.executable.bind_input(name, address, array.shape, array.dtype.name)
        if every_run:
            bound.inputs[name] = pinned
            bound.uploads[name] = address
        else:
            self._cuda.upload(address, pinned)

    def host_input(self, bound: Bound, name: str, array: NDArray[Any]) -> None:
        """Binds an input that is read on the host, from what is in `Bound.inputs` at each run."""
        bound.inputs[name] = self._pinned(bound, array.shape, array.dtype)
        address = bound.inputs[name].ctypes.data
        bound.executable.bind_host_input(name, address, array.shape, array.dtype.name)

    def output(
        self, bound: Bound, name: str, shape: tuple[int, ...], dtype: str, *, wanted: bool
    ) -> None:
        """Binds an output; a wanted one is copied to `Bound.downloads` by each run."""
        address = self._cuda.allocate(int(np.prod(shape)) * np.dtype(dtype).itemsize)
        bound.memory.append(address)
        bound.addresses[name] = address
        bound.executable.bind_output(name, address, shape, dtype)
        if wanted:
            bound.downloads[name] = self._pinned(bound, shape, dtype), address

    def run(self, bound: Bound) -> dict[str, NDArray[Any]]:
        """One execution, and the wait for the wanted outputs."""
        bound.num_runs += 1
        if bound.num_runs == 2 and self.executor.is_capturable:
            # The first run did what is left for it; from here on nothing changes.
            bound.graph = self._cuda.captured(lambda: self._enqueue(bound))
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
            # Executables first: each holds on to what the executor frees.
            while self._kept:
                self._release(self._kept.popitem()[1])
            self._executor.close()
            self._executor = None

    def _enqueue(self, bound: Bound) -> None:
        for name, address in bound.uploads.items():
            self._cuda.upload(address, bound.inputs[name])
        bound.executable.enqueue()
        for array, address in bound.downloads.values():
            self._cuda.download(array, address)

    def _pinned(self, bound: Bound, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        bound.pinned.append(self._cuda.pinned(shape, dtype))
        return bound.pinned[-1]

    def _release(self, bound: Bound) -> None:
        """Frees what a binding holds, none of which is in use after the last wait."""
        if bound.graph is not None:
            self._cuda.free_graph(bound.graph)
        for address in bound.memory:
            self._cuda.free(address)
        for array in bound.pinned:
            self._cuda.free_pinned(array)
