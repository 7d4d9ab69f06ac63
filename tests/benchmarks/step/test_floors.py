import msgspec
import onnx_ir as ir
import pytest
from step.floors import ArithmeticFloor, Products, products_of
from step.report import StepTable

from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.engines.operators import library_path


def test_products_are_those_of_the_model(tiny_bundle: Bundle) -> None:
    products = products_of(tiny_bundle)
    model = tiny_bundle.manifest.model
    graph = ir.load(tiny_bundle.graph_path("verify")).graph
    unembedding = model.hidden_size * model.vocab_size
    assert sum(products.multiply_adds.values()) > unembedding
    assert products.size_bytes < sum(
        value.const_value.nbytes
        for value in graph.initializers.values()
        if value.const_value is not None
    )
    assert tiny_bundle.cache_bytes(20) == 20 * tiny_bundle.cache_bytes(1)


@pytest.mark.parametrize(
    "bits",
    [
        32,
        pytest.param(
            8,
            marks=pytest.mark.skipif(
                library_path() is None, reason="the operator library was not built"
            ),
        ),
    ],
)
def test_arithmetic_grows_with_the_products(bits: int) -> None:
    small, large = (
        ArithmeticFloor(Products(0, {bits: count}), threads=1).ms(16) for count in (10**6, 10**9)
    )
    assert 0 < small < large / 50


def test_a_floor_is_the_larger_of_reading_and_arithmetic() -> None:
    table = StepTable(
        bundle="b",
        precision="int8",
        threads=1,
        past=256,
        read_bytes=1,
        arithmetic_ms={1: 1.0, 64: 9.0},
        times_ms={"read": [4.0, 5.0, 60.0]},
    )
    assert [table.floor_ms(nodes) for nodes in (1, 64)] == [5.0, 9.0]
    assert msgspec.json.decode(msgspec.json.encode(table), type=StepTable) == table
