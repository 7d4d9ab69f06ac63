"""The reduce graphs have the inputs that an engine writes, and the outputs that it reads."""

import numpy as np
import onnx_ir as ir
import pytest

from medusa_trt.export.graphs.reduce_forms import REDUCE_FORMS
from medusa_trt.export.graphs.reduce_interface import declare_outputs, make_inputs
from medusa_trt.runtime import tensors as names
from medusa_trt.runtime.engines.reduce_tensors import OUTPUTS, write_inputs
from medusa_trt.runtime.options import SamplingOptions

VOCAB_SIZE = 50


@pytest.mark.parametrize("form", REDUCE_FORMS)
def test_every_form_gives_what_an_engine_reads(form: str) -> None:
    graph = REDUCE_FORMS[form](VOCAB_SIZE, 21).graph
    found = {value.name: value.dtype.numpy() for value in graph.outputs if value.dtype is not None}
    assert found == {name: np.dtype(dtype) for name, dtype in OUTPUTS.items()}
    assert all(value.shape == ir.Shape(["num_rows"]) for value in graph.outputs)
    logits = graph.inputs[0]
    assert logits.name == names.LOGITS and logits.shape == ir.Shape(["num_rows", VOCAB_SIZE])


@pytest.mark.parametrize("form", REDUCE_FORMS)
def test_an_engine_writes_every_input(form: str) -> None:
    inputs = REDUCE_FORMS[form](VOCAB_SIZE, 21).graph.inputs[1:]
    arrays = {}
    for value in inputs:
        assert value.name is not None and value.dtype is not None and value.shape is not None
        size = value.shape[0] if isinstance(value.shape[0], int) else 3
        arrays[value.name] = np.zeros(size, value.dtype.numpy())
    options = SamplingOptions(temperature=0.5, top_k=7, top_p=0.75, min_p=0.25)
    write_inputs(
        arrays, np.array([3, 4, 5]), np.array([1, 1, 2]), options, np.full(3, 0.5), VOCAB_SIZE
    )
    assert all(array.all() for array in arrays.values())


def test_inputs_and_outputs_are_declared_in_one_order() -> None:
    inputs = make_inputs(VOCAB_SIZE, ir.DataType.DOUBLE)
    assert [value.dtype for value in inputs if value.name == names.UNIFORMS] == [ir.DataType.DOUBLE]
    values = [ir.Value() for _ in OUTPUTS]
    declare_outputs(values)
    assert [value.name for value in values] == list(OUTPUTS)
    with pytest.raises(ValueError, match="zip"):
        declare_outputs(values[1:])
