"""The pass that joins consecutive layers to one operator."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import onnx_ir as ir
from onnx_ir.passes import PassResult, PreconditionError

from medusa_trt.export.passes.checked_pass import CheckedPass
from medusa_trt.export.passes.rewiring import take_over
from medusa_trt.runtime.engines.operators import DOMAIN

_MOST_LAYERS = 8
_EXTERNAL, _NONE = -1, -2
_ATTRIBUTES = ("bits", "num_outputs", "activation", "gated")


class ChainLinearsPass(CheckedPass):
    """Joins `Linear` nodes to `LinearChain`, whose layers run without waking threads in between.

    A chain's layers read its input or each other, and add its residual or each other's outputs; it
    has at most eight. Nodes may be out of order afterwards.
    """

    reads_in_order = True

    def requires(self, model: ir.Model) -> None:
        """Checks the order, and that every layer is used: a chain would compute it all the same.

        Raises:
            PreconditionError: nodes are out of order, or a layer's output is not used.
        """
        super().requires(model)
        for node in model.graph:
            if _is_linear(node) and not (
                node.outputs[0].uses() or node.outputs[0].is_graph_output()
            ):
                raise PreconditionError(f"Linear {node.name!r} is not used")

    def call(self, model: ir.Model) -> PassResult:
        chains: list[_Chain] = []
        for node in model.graph:
            if not _is_linear(node):
                continue
            if not any(chain.take(node) for chain in reversed(chains)):
                chains.append(_Chain(node))
        joined = [chain for chain in chains if len(chain.nodes) > 1]
        for chain in joined:
            chain.replace(model.graph)
        return PassResult(model, bool(joined))

    def find_left_over(self, graph: ir.Graph) -> Iterator[ir.Node]:
        """Finds each layer alone that could be in one chain with the layer alone before it."""
        for node in graph:
            source = node.inputs[0] if _is_linear(node) else None
            before = None if source is None else source.producer()
            if before is not None and _is_linear(before) and _Chain(before).take(node):
                yield node


def _is_linear(node: ir.Node) -> bool:
    return node.domain == DOMAIN and node.op_type == "Linear"


@dataclass(slots=True)
class _Chain:
    """Nodes to join; the first one decides which values come from outside."""

    first: ir.Node
    nodes: list[ir.Node] = field(init=False)

    def __post_init__(self) -> None:
        self.nodes = [self.first]

    def take(self, node: ir.Node) -> bool:
        """Adds a node if all that it reads from outside is read by the first node too."""
        source, residual = self._find(node.inputs[0], 0), self._find(_get_residual(node), 5)
        if source is None or residual is None or len(self.nodes) == _MOST_LAYERS:
            return False
        self.nodes.append(node)
        return True

    def _find(self, value: ir.Value | None, place: int) -> int | None:
        """Finds the number by which a chain names a value: that of a layer, or a constant above.

        None if the value is neither an output nor an input of the chain.
        """
        if value is None:
            return _NONE
        if value is (_get_residual(self.first) if place else self.first.inputs[0]):
            return _EXTERNAL
        outputs = [node.outputs[0] for node in self.nodes]
        return next((i for i, output in enumerate(outputs) if output is value), None)

    def replace(self, graph: ir.Graph) -> None:
        """Replaces all nodes by one."""
        inputs = [self.first.inputs[0], _get_residual(self.first)]
        attributes = [ir.AttrInt64("num_layers", len(self.nodes))]
        inside = set(self.nodes)
        results: list[ir.Value] = []
        for i, node in enumerate(self.nodes):
            inputs += [node.inputs[k] if k < len(node.inputs) else None for k in range(1, 5)]
            source, residual = self._find(node.inputs[0], 0), self._find(_get_residual(node), 5)
            assert source is not None and residual is not None
            values = {name: node.attributes.get_int(name, 0) for name in _ATTRIBUTES}
            for name, value in {**values, "source": source, "residual": residual}.items():
                attributes.append(ir.AttrInt64(f"{name}{i}", value))
            epsilon = node.attributes.get_float("epsilon", 0.0)
            attributes.append(ir.AttrFloat32(f"epsilon{i}", epsilon))
            output = node.outputs[0]
            if output.is_graph_output() or any(user not in inside for user in output.consumers()):
                attributes.append(ir.AttrInt64(f"result{len(results)}", i))
                results.append(output)
        attributes.append(ir.AttrInt64("num_results", len(results)))
        while inputs[-1] is None:
            inputs.pop()
        chain = ir.Node(DOMAIN, "LinearChain", inputs, attributes, num_outputs=len(results))
        chain.name = self.first.name
        graph.insert_before(self.first, chain)
        for old, new in zip(results, chain.outputs, strict=True):
            take_over(old, new)
        graph.remove(self.nodes[::-1], safe=True)


def _get_residual(node: ir.Node) -> ir.Value | None:
    return node.inputs[5] if len(node.inputs) > 5 else None
