"""What TensorRT and TensorRT-RTX offer."""

from dataclasses import fields

from medusa_trt.export.tensorrt.options import BuildOptions
from medusa_trt.export.tensorrt.products import PRODUCTS
from medusa_trt.runtime.engines.engine_record import MODULES


def test_every_product_has_a_row() -> None:
    assert MODULES.keys() == PRODUCTS.keys()
    names = {field.name for field in fields(BuildOptions)}
    for name, row in PRODUCTS.items():
        assert name == row.name and row.unsupported.keys() <= names
