"""Checks of TensorRT's network, and descriptions of its errors."""

from types import SimpleNamespace

import pytest

from medusa_trt.errors import BuildError
from medusa_trt.export.tensorrt.checks import check_interface, describe_build_error
from medusa_trt.runtime.manifest import GraphSpec, TensorSpec

MODULE = SimpleNamespace(DataType=SimpleNamespace(FLOAT="float", HALF="half", INT64="int64"))
SPEC = GraphSpec(
    "heads.onnx",
    [TensorSpec("hidden", "float", ["batch", 64])],
    [TensorSpec("draft_ids", "int64", ["batch", 3, 10])],
)


def make_network(
    dtype: str = "float", width: int = 64, output: str = "draft_ids"
) -> SimpleNamespace:
    inputs = [SimpleNamespace(name="hidden", dtype=dtype, shape=(-1, width))]
    outputs = [SimpleNamespace(name=output, dtype="int64", shape=(-1, 3, 10))]
    return SimpleNamespace(
        num_inputs=1, num_outputs=1, get_input=inputs.__getitem__, get_output=outputs.__getitem__
    )


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (
            make_network(dtype="half"),
            r"hidden is half \(-1, 64\) in the network, float \['batch', 64",
        ),
        (make_network(width=65), r"hidden is float \(-1, 65\) in the network"),
        (make_network(output="ids"), "draft_ids, ids is in only one of manifest and network"),
    ],
)
def test_a_network_that_differs_from_the_manifest_is_refused(
    network: SimpleNamespace, message: str
) -> None:
    check_interface(MODULE, make_network(), SPEC, capacity=16)
    with pytest.raises(BuildError, match=message):
        check_interface(MODULE, network, SPEC, capacity=16)


@pytest.mark.parametrize(
    ("errors", "parts"),
    [
        ([], ["heads engine: no reason was given; export with another --precision"]),
        (["a", "out of memory\nfor node /x/MatMul"], ["at node /x/MatMul: out of memory for node"]),
        (["out of memory"], ["lower --max-length, --max-batch-size or --workspace-mib"]),
        (["libnvinfer_lean.so: not found"], ["leave --version-compatible out"]),
        (["cudaErrorNoDevice"], ["run this on a machine with a GPU"]),
    ],
)
def test_a_failed_build_says_what_to_do(errors: list[str], parts: list[str]) -> None:
    text = describe_build_error(errors, "heads")
    assert "\n" not in text and all(part in text for part in parts), text
