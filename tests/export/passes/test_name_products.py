"""Names of products, against those of torch's older exporter."""

import warnings
from collections import OrderedDict
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from support.graphs.graph_texts import parsed
from torch import nn

from medusa_trt.export.passes.name_products import NameProductsPass, node_name_from_path
from medusa_trt.export.weights.lazy_tensor import LazyTensor, concatenate_tensors

ARRAY = np.ones((8, 8), np.float32)


class Model(nn.Module):
    """Two layers of two products, and an unembedding."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([self.make_layer(), self.make_layer()])
        self.lm_head = nn.Linear(8, 8, bias=False)

    @staticmethod
    def make_layer() -> nn.Module:
        products = {name: nn.Linear(8, 8, bias=False) for name in ("up_proj", "down_proj")}
        mlp = nn.Sequential(OrderedDict(products))
        return nn.Sequential(OrderedDict(mlp=mlp, act=nn.ReLU()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        logits: torch.Tensor = self.lm_head(x)
        return logits


def weight(name: str) -> LazyTensor:
    return LazyTensor(lambda: ARRAY, ARRAY.shape, name, sources=[name])


def product_by(tensor: ir.TensorProtocol, op_type: str = "MatMul") -> ir.Model:
    """A graph of one product by a tensor."""
    text = f"g (float[2, 8] x) => (float[2, 8] y) {{ y = {op_type}(x, w) }}"
    model = parsed(text, {"w": ARRAY})
    model.graph.initializers["w"].const_value = tensor
    return model


def name_of(model: ir.Model) -> str | None:
    """The name of the product after the pass, which leaves nothing to do."""
    NameProductsPass()(model)
    assert not NameProductsPass()(model).modified
    return next(iter(model.graph)).name


def test_names_are_those_of_torchs_older_exporter(tmp_path: Path) -> None:
    model, file = Model(), tmp_path / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(model, (torch.ones(2, 3, 8),), file, dynamo=False)
    graph = onnx.load(file).graph
    products = [node.name for node in graph.node if node.op_type == "MatMul"]
    paths = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    assert products == [node_name_from_path(path) for path in paths] and len(paths) == 5


@pytest.mark.parametrize("op_type", ["MatMul", "Gemm"])
def test_a_product_is_named_after_the_module_of_its_weight(op_type: str) -> None:
    model = product_by(weight("model.model.layers.10.mlp.up_proj.weight"), op_type)
    assert name_of(model) == "/model/layers.10/mlp/up_proj/MatMul"


def test_a_packed_product_is_named_after_the_first_of_its_weights() -> None:
    names = [f"model.layers.0.self_attn.{part}_proj.weight" for part in "qkv"]
    packed = concatenate_tensors([weight(name) for name in names], axis=1)
    assert name_of(product_by(packed)) == "/layers.0/self_attn/q_proj/MatMul"


def test_what_is_no_weight_of_a_module_gives_no_name() -> None:
    for model in (
        product_by(weight("cos")),
        parsed("g (float[8, 8] x) => (float[8, 8] y) { y = MatMul(x, x) }", {}),
    ):
        before = next(iter(model.graph)).name
        assert name_of(model) == before
