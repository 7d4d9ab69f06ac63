"""What the engine on a GPU asks of whatever executes the graphs there."""

from typing import Protocol

from medusa_trt.tree_configs import MedusaTree


class Executable(Protocol):
    """A graph of fixed shapes and addresses, to be run again and again."""

    def takes(self, name: str) -> bool:
        """Whether there is an input of this name; the tree's are not where it is merged."""
        ...

    def bind_input(self, name: str, address: int, shape: tuple[int, ...], dtype: str) -> None:
        """Says where an input lies in device memory.

        Raises:
            EngineError: the graph does not take this shape.
        """
        ...

    def bind_host_input(self, name: str, address: int, shape: tuple[int, ...], dtype: str) -> None:
        """Says where an input lies that is read on the host; as `bind_input`."""
        ...

    def bind_output(self, name: str, address: int, shape: tuple[int, ...], dtype: str) -> None:
        """Says where an output is to be written; as `bind_input`."""
        ...

    def enqueue(self) -> None:
        """Runs it on the stream, without waiting.

        Raises:
            EngineError: it failed.
        """
        ...


class Executor(Protocol):
    """What runs a bundle's graphs on the device's stream."""

    @property
    def is_capturable(self) -> bool:
        """Whether runs may be recorded as a CUDA graph from outside."""
        ...

    def open(self, graph: str, tree: MedusaTree | None) -> Executable:
        """An executable of a graph, nothing bound yet; of the verify graph for a tree.

        Raises:
            EngineError: there is no memory for it, or the tree has too many nodes.
        """
        ...

    def close(self) -> None:
        """Frees everything; nothing is running."""
        ...
