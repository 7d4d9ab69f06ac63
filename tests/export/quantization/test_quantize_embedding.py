"""Tables of token embeddings in 8 bits."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from support.one_operator import run_graph
from support.tiny_models import llama_config, save_tiny_model

from medusa_trt.cli import main as cli
from medusa_trt.export.graphs.tracing import trace_module
from medusa_trt.export.quantization.library import dequantize_weight, quantize_weight
from medusa_trt.export.quantization.quantize_embedding import QuantizeEmbeddingPass
from medusa_trt.runtime.engines.operators import find_library

pytestmark = pytest.mark.skipif(find_library() is None, reason="built without a C++ compiler")

IDS = torch.tensor([[4, 0, 49]])


def traced(table: torch.nn.Embedding, input_name: str) -> ir.Model:
    return trace_module(
        table,
        (IDS,),
        23,
        input_names=[input_name],
        output_names=["hidden"],
        dynamic_shapes=({},),
        weights={},
    )


def test_token_ids_look_up_rows_of_the_rounded_table() -> None:
    table = torch.nn.Embedding(50, 70)
    model = traced(table, "input_ids")
    QuantizeEmbeddingPass()(model)
    weight = table.weight.detach().numpy().T
    rounded = dequantize_weight(quantize_weight(weight, 8), *weight.shape).T
    assert np.array_equal(run_graph(model, {"input_ids": IDS.numpy()})[0], rounded[IDS.numpy()])


def test_a_lookup_by_anything_else_stays() -> None:
    model = traced(torch.nn.Embedding(50, 70), "positions")
    assert not QuantizeEmbeddingPass()(model).modified


@pytest.mark.parametrize("tied", [True, False])
def test_a_bundle_holds_a_tied_table_once(tied: bool, tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model", llama_config(tie_word_embeddings=tied))
    command = ["export", "--model", model, "--heads", "none", "--output", tmp_path / "bundle"]
    assert cli.main([*map(str, command), "--precision", "int8"]) == 0
    graph = onnx.load(tmp_path / "bundle" / "verify.onnx", load_external_data=False).graph
    offsets = {
        tensor.name: next(entry.value for entry in tensor.external_data if entry.key == "offset")
        for tensor in graph.initializer
        if tensor.external_data
    }
    unembedding = next(node.input[1] for node in graph.node if "logits" in node.output)
    assert (offsets["embedding.weight"] == offsets[unembedding]) == tied
