"""Inputs and outputs that the reduce graphs have in common; see `Engine.reduce`."""

from collections.abc import Sequence

import onnx_ir as ir

from medusa_trt.runtime import tensors as names

_OUTPUTS = {
    names.SAMPLED: ir.DataType.INT64,
    names.COVERED: ir.DataType.BOOL,
    names.ENTROPY: ir.DataType.FLOAT,
    names.CANDIDATE_LOGPROB: ir.DataType.FLOAT,
}


def make_inputs(vocab_size: int, uniforms: ir.DataType) -> list[ir.Value]:
    """Makes the inputs of a reduce graph; `uniforms` is the type of the random numbers."""
    rows: list[int | str] = ["num_rows"]
    return [
        ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))
        for name, dtype, shape in (
            (names.LOGITS, ir.DataType.FLOAT, [*rows, vocab_size]),
            (names.CANDIDATES, ir.DataType.INT64, rows),
            (names.PARENT_ROWS, ir.DataType.INT64, rows),
            (names.UNIFORMS, uniforms, rows),
            (names.TEMPERATURE, ir.DataType.FLOAT, [1]),
            (names.TOP_K, ir.DataType.INT64, [1]),
            (names.TOP_P, ir.DataType.FLOAT, [1]),
            (names.MIN_P, ir.DataType.FLOAT, [1]),
        )
    ]


def declare_outputs(values: Sequence[ir.Value]) -> None:
    """Gives the four outputs their names, types and shapes."""
    for value, (name, dtype) in zip(values, _OUTPUTS.items(), strict=True):
        value.name, value.shape, value.dtype = name, ir.Shape(["num_rows"]), dtype
