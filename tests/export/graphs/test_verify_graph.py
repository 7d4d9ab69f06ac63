"""The verify graph: its interface, and that the model is left as it was."""

import torch
from support.model_families import FAMILIES, MAX_LENGTH, config, weighted_model
from support.tiny_models import HIDDEN_SIZE, VOCAB_SIZE, random_model

from medusa_trt.export.graphs.verify_graph import trace_verify
from medusa_trt.export.graphs.verify_module import VerifyModule
from medusa_trt.export.modeling.device_attention import DeviceAttention
from medusa_trt.export.modeling.operator_attention import CachedAttention
from medusa_trt.runtime import tensors as names


def test_the_model_is_given_back_unchanged() -> None:
    model = weighted_model(FAMILIES["llama"])
    tokens = torch.arange(20)[None]
    attributes = model.model.rotary_emb, model.config._attn_implementation
    with torch.no_grad():
        before = model(tokens).logits
    trace_verify(VerifyModule(model, MAX_LENGTH, CachedAttention), opset=23)
    assert (model.model.rotary_emb, model.config._attn_implementation) == attributes
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, before)


def test_a_graph_for_a_device_takes_sequences_and_cache_of_any_size() -> None:
    model = random_model(config("llama", num_hidden_layers=1))
    graph = trace_verify(VerifyModule(model, MAX_LENGTH, DeviceAttention), opset=23).graph
    cache: list[int | str] = ["batch", 2, "capacity", 16]
    expected: dict[str, list[int | str]] = {
        names.INPUT_IDS: ["batch", "num_nodes"],
        names.TREE_MASK: ["num_nodes", "num_nodes"],
        names.POSITION_OFFSETS: ["num_nodes"],
        names.PAST_LENGTH: ["batch"],
        names.ROWS: ["num_rows"],
        names.CACHE_POSITIONS: ["num_read"],
        names.past_name(0, "key"): cache,
        names.past_name(0, "value"): cache,
    }
    shapes = {value.name: value.shape for value in graph.inputs}
    assert list(shapes) == list(expected)
    for name, sizes in expected.items():
        shape = shapes[name]
        assert shape is not None
        assert [size if isinstance(size, int) else str(size.value) for size in shape] == sizes
    presents = [names.present_name(0, kind) for kind in ("key", "value")]
    outputs = {value.name: value.shape for value in graph.outputs}
    assert list(outputs) == [names.ARGMAX, names.HIDDEN, names.LOGITS, *presents]
    last = [shape[-1] for shape in outputs.values() if shape is not None and len(shape) == 2]
    assert last == [HIDDEN_SIZE, VOCAB_SIZE]
    assert graph.opset_imports[""] == DeviceAttention.min_opset
    products = [node.name for node in graph if node.op_type == "MatMul"]
    assert "/model/layers.0/self_attn/q_proj/MatMul" in products, products
