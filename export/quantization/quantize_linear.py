"""The pass that fuses a quantized product and its neighbours to one operator."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import PassResult, PreconditionError

from medusa_trt.export.passes.checked_pass import CheckedPass
from medusa_trt.export.passes.rewiring import (
    add_initializer,
    find_product_weight,
    have_same_shape,
    read_constant,
    take_over,
)
from medusa_trt.export.quantization.lazy_quantization import quantize_when_read
from medusa_trt.export.quantization.library import BLOCK_SIZES, LANES, quantize_weight
from medusa_trt.export.weight_formats import BITS, ChooseFormat, ReportStored, WeightFormat
from medusa_trt.export.weights.lazy_tensor import Array, LazyTensor, wrap_tensor
from medusa_trt.runtime.engines.operators import DOMAIN

_SILU = 1


class QuantizeLinearPass(CheckedPass):
    """Rewrites products with constant matrices to the operator library's `Linear`.

    It takes in the RMS normalization before a product, and after it a bias, SiLU, a gate
    (`silu(x G) * x U`) and a residual addition. A matrix without a format stays as it is.
    """

    reads_shapes_of = ("Add",)

    def __init__(
        self, choose_format: ChooseFormat, report_stored: ReportStored | None = None
    ) -> None:
        """Takes the function that chooses int8 or int4, and the one called for stored matrices."""
        super().__init__()
        self._choose_format, self._report_stored = choose_format, report_stored

    def call(self, model: ir.Model) -> PassResult:
        products = self._find_products(model.graph)
        done: set[ir.Node] = set()
        for node, format_ in products.items():
            if node not in done:
                done |= _replace(model.graph, node, BITS[format_], self._report_stored)
        if products:
            model.graph.opset_imports[DOMAIN] = 1
        return PassResult(model, bool(products))

    def requires(self, model: ir.Model) -> None:
        """Checks shapes, and that both matrices of a gated product have one format.

        Raises:
            PreconditionError: a shape is missing, or a gate has another format.
        """
        super().requires(model)
        formats = self._find_products(model.graph)
        for node in formats:
            products = _plan_linear(node).products
            if len({formats.get(product) for product in products}) > 1:
                raise PreconditionError(
                    f"{products[0].name!r} and {products[1].name!r} are one gated product and have "
                    "two formats"
                )

    def find_left_over(self, graph: ir.Graph) -> Iterator[ir.Node]:
        """Finds each product by a matrix that has a format."""
        return iter(self._find_products(graph))

    def _find_products(self, graph: ir.Graph) -> dict[ir.Node, WeightFormat]:
        """Finds the products to rewrite, with the format of each."""
        return {
            node: format_
            for node in graph
            if (weight := _find_weight(node)) is not None
            and (format_ := self._choose_format(weight))
        }


def _replace(
    graph: ir.Graph, product: ir.Node, bits: int, report_stored: ReportStored | None
) -> set[ir.Node]:
    plan = _plan_linear(product)
    num_outputs = plan.weights[0].sizes[1]
    data, scales = quantize_layer(_interleave(plan.weights), bits, report_stored)
    name = product.name or product.outputs[0].name
    inputs: list[ir.Value | None] = [
        plan.source,
        add_initializer(graph, f"{name}.weight", data),
        add_initializer(graph, f"{name}.scales", scales),
        plan.norm_weight,
        add_initializer(graph, f"{name}.bias", _interleave(plan.biases)) if plan.biases else None,
        plan.residual,
    ]
    while inputs[-1] is None:
        inputs.pop()
    linear = ir.Node(
        DOMAIN,
        "Linear",
        inputs,
        [
            ir.AttrInt64("bits", bits),
            ir.AttrInt64("num_outputs", num_outputs),
            ir.AttrInt64("activation", _SILU if plan.activated else 0),
            ir.AttrInt64("gated", int(len(plan.weights) == 2)),
            ir.AttrFloat32("epsilon", plan.epsilon),
        ],
    )
    graph.insert_before(plan.last, linear)
    take_over(plan.last.outputs[0], linear.outputs[0])
    return {product, *plan.products}


@dataclass(slots=True)
class _Plan:
    """Parts of one fused operator, and the last node that it replaces."""

    source: ir.Value
    last: ir.Node
    weights: list[LazyTensor]
    products: list[ir.Node]
    biases: list[LazyTensor] = field(default_factory=list)
    norm_weight: ir.Value | None = None
    epsilon: float = 0.0
    activated: bool = False
    residual: ir.Value | None = None


def _plan_linear(product: ir.Node) -> _Plan:
    weight = _find_weight(product)
    assert weight is not None and product.inputs[0] is not None
    plan = _Plan(product.inputs[0], product, [weight], [product])
    plan.last, bias = _find_bias(product, weight.sizes[1])
    if bias is not None:
        plan.biases = [bias]
    _add_activation(plan)
    _add_residual(plan)
    norm = plan.source.producer()
    if norm is not None and _is_plain_norm(norm) and norm.inputs[0] is not None:
        plan.source, plan.norm_weight = norm.inputs[0], norm.inputs[1]
        plan.epsilon = norm.attributes.get_float("epsilon", 1e-5)
    return plan


def _add_activation(plan: _Plan) -> None:
    """Takes in SiLU, and the product that it gates."""
    value = plan.last.outputs[0]
    users = list(value.consumers())
    sigmoid = next((user for user in users if user.op_type == "Sigmoid"), None)
    silu = next((user for user in users if user.op_type == "Mul"), None)
    if len(users) != 2 or sigmoid is None or silu is None:
        return
    if set(silu.inputs) != {value, sigmoid.outputs[0]} or sigmoid.outputs[0].is_graph_output():
        return
    plan.last, plan.activated = silu, True
    gated = _find_only_user(silu)
    if gated is None or gated.op_type != "Mul":
        return
    other = next(value for value in gated.inputs if value is not silu.outputs[0])
    up = _find_before_bias(other)
    up_weight = None if up is None else _find_weight(up)
    if up is None or up_weight is None or up.inputs[0] is not plan.source:
        return
    last, up_bias = _find_bias(up, up_weight.sizes[1])
    same_form = up_weight.sizes == plan.weights[0].sizes and (up_bias is None) == (not plan.biases)
    if last.outputs[0] is not other or not same_form or _find_only_user(last) is not gated:
        return
    plan.weights.append(up_weight)
    plan.products.append(up)
    if up_bias is not None:
        plan.biases.append(up_bias)
    plan.last = gated


def _add_residual(plan: _Plan) -> None:
    add = _find_only_user(plan.last)
    if add is None or add.op_type != "Add" or add.domain != "":
        return
    others = [value for value in add.inputs if value is not plan.last.outputs[0]]
    if len(others) == 1 and have_same_shape(others[0], add.outputs[0]):
        plan.last, plan.residual = add, others[0]


def _find_bias(product: ir.Node, num_outputs: int) -> tuple[ir.Node, LazyTensor | None]:
    """Finds the node after which a product has its constant bias, and the bias."""
    if product.op_type == "Gemm" and len(product.inputs) > 2 and product.inputs[2] is not None:
        return product, _read_constant(product.inputs[2])
    add = _find_only_user(product)
    if add is None or add.op_type != "Add":
        return product, None
    for value in add.inputs:
        bias = _read_constant(value)
        if bias is not None and bias.sizes == (num_outputs,):
            return add, bias
    return product, None


def _find_before_bias(value: ir.Value | None) -> ir.Node | None:
    node = None if value is None else value.producer()
    if node is not None and node.op_type == "Add":
        products = [value.producer() for value in node.inputs if value is not None]
        return next(
            (product for product in products if product and _find_weight(product) is not None), None
        )
    return node


def _find_weight(node: ir.Node) -> LazyTensor | None:
    """Finds the float32 (inputs, outputs) matrix of a product whose bias is constant, if any."""
    weight = find_product_weight(node)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None and bias.const_value is None:
        return None
    return weight if weight is not None and weight.dtype == ir.DataType.FLOAT else None


def _is_plain_norm(node: ir.Node) -> bool:
    value = node.inputs[0]
    if node.op_type != "RMSNormalization" or value is None or value.shape is None:
        return False
    weight = read_constant(node.inputs[1])
    over_last = node.attributes.get_int("axis", -1) in (-1, len(value.shape) - 1)
    return over_last and weight is not None and len(weight.shape) == 1


def _find_only_user(node: ir.Node) -> ir.Node | None:
    value = node.outputs[0]
    users = list(value.consumers())
    return users[0] if len(users) == 1 and not value.is_graph_output() else None


def _interleave(tensors: list[LazyTensor]) -> LazyTensor:
    """Interleaves two tensors by 16 elements of the last axis, padded to full groups.

    A single matrix stays as it is, because quantization pads it; a single bias is padded.
    """
    *outer, width = tensors[0].sizes
    if len(tensors) == 1 and (outer or width % LANES == 0):
        return tensors[0]
    width += -width % LANES
    return LazyTensor(
        lambda: _interleave_arrays([tensor.stored() for tensor in tensors]),
        (*outer, len(tensors) * width),
        ("in turn", *(tensor.key for tensor in tensors)),
        tensors[0].dtype,
        sources=[source for tensor in tensors for source in tensor.sources],
    )


def _interleave_arrays(arrays: list[Array]) -> Array:
    padded = []
    for array in arrays:
        missing = -array.shape[-1] % LANES
        widths = [(0, 0)] * (array.ndim - 1) + [(0, missing)]
        whole = np.pad(array, widths) if missing else array
        padded.append(whole.reshape(*array.shape[:-1], -1, 1, LANES))
    joined = np.concatenate(padded, axis=-2)
    return joined.reshape(*joined.shape[:-3], -1)


def quantize_layer(
    weight: LazyTensor, bits: int, report_stored: ReportStored | None
) -> tuple[LazyTensor, LazyTensor]:
    """Makes the data and the scales of a weight (inputs, outputs) when it is read."""
    num_inputs, num_outputs = weight.sizes
    num_groups, padded_inputs = -(-num_outputs // LANES), num_inputs + -num_inputs % 64

    def quantize() -> tuple[Array, Array]:
        quantized = quantize_weight(weight.stored(), bits)
        if report_stored is not None:
            report_stored(weight, quantized.is_exact)
        return quantized.data, quantized.scales

    return quantize_when_read(
        quantize,
        ((num_groups, padded_inputs * LANES * bits // 8), ir.DataType.UINT8),
        ((num_groups, padded_inputs // BLOCK_SIZES[bits], LANES), ir.DataType.FLOAT16),
        (bits, weight.key),
    )


def _read_constant(value: ir.Value | None) -> LazyTensor | None:
    tensor = read_constant(value)
    return None if tensor is None else wrap_tensor(tensor)
