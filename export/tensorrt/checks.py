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
    for wanted, tensors in groups:
        found = {tensor.name: tensor for tensor in tensors}
        if found.keys() != {tensor.name for tensor in wanted}:
            different = sorted(found.keys() ^ {tensor.name for tensor in wanted})
            raise BuildError(
                f"{spec.file}: {', '.join(different)} is in the manifest or the network alone: "
                "export the model again"
            )
        for tensor in wanted:
            dtype = _type_of(module, tensor.dtype)
            sizes = with_capacity(tensor, capacity).shape
            own = found[tensor.name]
            fits = all(
                isinstance(size, str) or actual in (size, -1)
                for size, actual in zip(sizes, tuple(own.shape), strict=True)
            )
            if own.dtype != dtype or not fits:
                raise BuildError(
                    f"{spec.file}: {tensor.name} is {own.dtype} {tuple(own.shape)} in the network, "
                    f"{tensor.dtype} {sizes} in the manifest: export the model again"
                )


def check_precision(module: Any, network: Any, dtype: str) -> None:
    """Checks that products and attention compute in the manifest's type.

    Raises:
        BuildError: one computes in another type, such as float32.
    """
    wanted = _type_of(module, dtype)
    kinds = {module.LayerType.MATRIX_MULTIPLY}
    for name in ("ATTENTION", "ATTENTION_INPUT", "ATTENTION_OUTPUT"):
        if hasattr(module.LayerType, name):
            kinds.add(getattr(module.LayerType, name))
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type in kinds and layer.get_output(0).dtype != wanted:
            raise BuildError(
                f"layer {layer.name!r} would compute in {layer.get_output(0).dtype} instead of "
                f"{dtype}: export the model again with this release"
            )


def _type_of(module: Any, dtype: str) -> Any:
    members = {"float": "FLOAT", "float32": "FLOAT", "float16": "HALF", "bfloat16": "BF16"}
    return getattr(module.DataType, members.get(dtype, dtype.upper()))


def with_capacity(tensor: TensorSpec, capacity: int) -> TensorSpec:
    shape = [capacity if size == "capacity" else size for size in tensor.shape]
    return TensorSpec(tensor.name, tensor.dtype, shape)


def describe_parser_error(module: Any, parser: Any, file: str) -> str:
    """Describes the first error of a parser: node, operator, reason and what to do."""
    error = parser.get_error(0)
    operator, reason = error.node_operator(), one_line(error.desc())
    if "Plugin not found" in reason or "no importer" in reason.lower():
        reason = "the operator is unknown"
    return (
        f"{file}: TensorRT {module.__version__} refuses node {error.node_name()!r} "
        f"({operator}): {reason}; {_fix_for_operator(operator)}"
    )


def _fix_for_operator(operator: str) -> str:
    if operator in ("Attention", "TensorScatter", "RotaryEmbedding", "RMSNormalization"):
        return "use TensorRT 10.15 or later, or export the model with --target tensorrt-jetson"
    if operator in ("DequantizeLinear", "QuantizeLinear"):
        return "export the model with another --precision"
    return "export the model with this release and a TensorRT target"


def describe_build_error(errors: list[str], graph: str) -> str:
    """Describes why a build failed: the last error, its node, and what to do."""
    text = one_line(errors[-1]) if errors else "no reason was given"
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


def one_line(text: str) -> str:
    """Text without line breaks."""
    return " ".join(text.split())
