"""Passes that check what they need of a graph, and what they promise, whenever they run."""

import abc
from collections.abc import Iterator
from typing import ClassVar, Generic, TypeVar

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult, PostconditionError, PreconditionError

Match = TypeVar("Match")


class CheckedPass(InPlacePass):
    """A pass whose conditions run: onnx-ir calls `requires` before it and `ensures` after it.

    Attributes:
        reads_in_order: whether a node must come after the nodes that it reads.
        reads_shapes_of: operators whose first output must have a shape, which may hold free
            dimensions.
    """

    reads_in_order: ClassVar[bool] = False
    reads_shapes_of: ClassVar[tuple[str, ...]] = ()

    @abc.abstractmethod
    def find_left_over(self, graph: ir.Graph) -> Iterator[ir.Node]:
        """Finds the nodes that this pass promises to remove or to change."""
        ...

    def requires(self, model: ir.Model) -> None:
        """Checks order and shapes.

        Raises:
            PreconditionError: the graph is not in the form that the pass reads.
        """
        name = type(self).__name__
        seen: set[ir.Node] = set()
        for node in model.graph:
            if node.op_type in self.reads_shapes_of and node.outputs[0].shape is None:
                raise PreconditionError(
                    f"{name} reads the shape of {node.op_type} {node.name!r}, which has none"
                )
            if self.reads_in_order:
                producers = (value.producer() for value in node.inputs if value is not None)
                if any(producer is not None and producer not in seen for producer in producers):
                    raise PreconditionError(
                        f"{name} reads nodes in order, and {node.op_type} {node.name!r} comes "
                        "before a node that it reads"
                    )
                seen.add(node)

    def ensures(self, model: ir.Model) -> None:
        """Checks that nothing is left over, except for nodes whose results are not read.

        Raises:
            PostconditionError: a node that the outputs need is left over.
        """
        left = list(self.find_left_over(model.graph))
        used = find_used_nodes(model.graph) if left else ()
        for node in left:
            if node in used:
                raise PostconditionError(
                    f"{type(self).__name__} left {node.op_type} {node.name!r} as it was"
                )


class NodePass(CheckedPass, Generic[Match]):
    """A pass that looks at one node after the other, and rewrites those that match.

    Attributes:
        domain: the operator domain that the new nodes need, in version 1; "" for none.
    """

    domain: ClassVar[str] = ""

    @abc.abstractmethod
    def match(self, node: ir.Node) -> Match | None:
        """Facts that `rewrite` needs about a node; None where the node stays as it is."""
        ...

    @abc.abstractmethod
    def rewrite(self, graph: ir.Graph, node: ir.Node, match: Match) -> None:
        """Rewrites a node that matched."""
        ...

    def call(self, model: ir.Model) -> PassResult:
        """Rewrites each node that matches when its turn comes."""
        modified = False
        for node in list(model.graph):
            match = self.match(node)
            if match is not None:
                self.rewrite(model.graph, node, match)
                modified = True
        if modified and self.domain:
            model.graph.opset_imports[self.domain] = 1
        return PassResult(model, modified)

    def find_left_over(self, graph: ir.Graph) -> Iterator[ir.Node]:
        """Finds each node that matches."""
        return (node for node in graph if self.match(node) is not None)


def find_used_nodes(graph: ir.Graph) -> set[ir.Node]:
    """Finds the nodes that the graph's outputs depend on."""
    used: set[ir.Node] = set()
    values = list(graph.outputs)
    while values:
        node = values.pop().producer()
        if node is not None and node not in used:
            used.add(node)
            values += [value for value in node.inputs if value is not None]
    return used
