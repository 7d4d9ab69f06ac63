"""The contract between the engine on a GPU and the product that runs the graphs."""

from typing import Protocol

from medusa_trt.tree_configs import MedusaTree


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
