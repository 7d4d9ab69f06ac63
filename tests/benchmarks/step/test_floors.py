"""Lower bounds of a step's time."""

import onnx_ir as ir
import pytest
from step.floors import ArithmeticFloor, Products, read_products

from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.engines.operators import find_library


def test_products_are_those_of_the_model(tiny_bundle: Bundle) -> None:
    products = read_products(tiny_bundle)
    model = tiny_bundle.manifest.model
    graph = ir.load(tiny_bundle.graph_path("verify")).graph
    unembedding = model.hidden_size * model.vocab_size
    assert sum(products.multiply_adds.values()) > unembedding
    assert products.size_bytes < sum(
        value.const_value.nbytes
        for value in graph.initializers.values()
        if value.const_value is not None
    )
    assert tiny_bundle.count_cache_bytes(20) == 20 * tiny_bundle.count_cache_bytes(1)


@pytest.mark.parametrize(
    "bits",
    [
        32,
        pytest.param(
            8,
            marks=pytest.mark.skipif(
                find_library() is None, reason="the operator library was not built"
            ),
        ),
    ],
)
def test_arithmetic_grows_with_the_products(bits: int) -> None:
    small, large = (
        ArithmeticFloor(Products(0, {bits: count}), threads=1).measure_ms(16)
        for count in (10**6, 10**9)
    )
    assert 0 < small < large / 50
