"""Compares TensorRT's network with the manifest, and describes TensorRT's errors."""

import re
from typing import Any

from medusa_trt.errors import BuildError
from medusa_trt.runtime.manifest import GraphSpec, TensorSpec


def check_interface(module: Any, network: Any, spec: GraphSpec, capacity: int) -> None:
    """Checks that a network has the manifest's inputs and outputs, with their types and sizes.

    Raises:
        BuildError: a tensor is missing, added, or differs.
    """
    groups = (
        (spec.inputs, [network.get_input(i) for i in range(network.num_inputs)]),
        (spec.outputs, [network.get_output(i) for i in range(network.num_outputs)]),
    )
    for specs, tensors in groups:
        in_network = {tensor.name: tensor for tensor in tensors}
        different = sorted(in_network.keys() ^ {tensor.name for tensor in specs})
        if different:
            raise BuildError(
                f"{spec.file}: {', '.join(different)} is in only one of manifest and network: "
                "export the model again"
            )
        for tensor in specs:
            dtype = _find_type(module, tensor.dtype)
            sizes = set_capacity(tensor, capacity).shape
            actual = in_network[tensor.name]
            fits = all(
                isinstance(size, str) or actual_size in (size, -1)
                for size, actual_size in zip(sizes, tuple(actual.shape), strict=True)
            )
            if actual.dtype != dtype or not fits:
                raise BuildError(
                    f"{spec.file}: {tensor.name} is {actual.dtype} {tuple(actual.shape)} in the "
                    f"network, {tensor.dtype} {sizes} in the manifest: export the model again"
                )


def check_precision(module: Any, network: Any, dtype: str) -> None:
    """Checks that products and attention compute in the manifest's type.

    Raises:
        BuildError: a layer computes in another type, such as float32.
    """
    expected = _find_type(module, dtype)
    kinds = {module.LayerType.MATRIX_MULTIPLY}
    for name in ("ATTENTION", "ATTENTION_INPUT", "ATTENTION_OUTPUT"):
        if hasattr(module.LayerType, name):
            kinds.add(getattr(module.LayerType, name))
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type in kinds and layer.get_output(0).dtype != expected:
            raise BuildError(
                f"layer {layer.name!r} would compute in {layer.get_output(0).dtype} instead of "
                f"{dtype}: export the model again with this release"
            )


def _find_type(module: Any, dtype: str) -> Any:
    members = {"float": "FLOAT", "float32": "FLOAT", "float16": "HALF", "bfloat16": "BF16"}
    return getattr(module.DataType, members.get(dtype, dtype.upper()))


def set_capacity(tensor: TensorSpec, capacity: int) -> TensorSpec:
    """Replaces a symbolic capacity in a tensor's shape by a number."""
    shape = [capacity if size == "capacity" else size for size in tensor.shape]
    return TensorSpec(tensor.name, tensor.dtype, shape)


def describe_parser_error(module: Any, parser: Any, file: str) -> str:
    """Describes the first error of a parser: node, operator, reason and what to do."""
    error = parser.get_error(0)
    operator, reason = error.node_operator(), join_lines(error.desc())
    if "Plugin not found" in reason or "no importer" in reason.lower():
        reason = "the operator is unknown"
    return (
        f"{file}: TensorRT {module.__version__} refuses node {error.node_name()!r} "
        f"({operator}): {reason}; {_advise_on_operator(operator)}"
    )


def _advise_on_operator(operator: str) -> str:
    if operator in ("Attention", "TensorScatter", "RotaryEmbedding", "RMSNormalization"):
        return "use TensorRT 10.15 or later, or export the model with --target tensorrt-jetson"
    if operator in ("DequantizeLinear", "QuantizeLinear"):
        return "export the model with another --precision"
    return "export the model with this release and a TensorRT target"


def describe_build_error(errors: list[str], graph: str) -> str:
    """Describes why a build failed: the last error, its node, and what to do."""
    text = join_lines(errors[-1]) if errors else "no reason was given"
    node = re.search(r"for node (\S+)", text)
    where = f" at node {node.group(1)}" if node else ""
    fix = "export with another --precision or report this model"
    for pattern, advice in (
        ("HW-specific datatypes", "choose another --precision or a newer compute capability"),
        ("memory", "lower --max-length, --max-batch-size or --workspace-mib"),
        ("libnvinfer_lean", "leave --version-compatible out"),
        ("CUDA_SUCCESS|cudaError", "run this on a machine with a GPU, or leave the option out"),
    ):
        if re.search(pattern, text):
            fix = advice
            break
    return f"TensorRT failed to build the {graph} engine{where}: {text[:300]}; {fix}"


def join_lines(text: str) -> str:
    """Joins the lines of a text by spaces."""
    return " ".join(text.split())
