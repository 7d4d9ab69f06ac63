"""The verify graph as a module around a model."""

import pytest
import torch
from support.model_families import FAMILIES, MAX_LENGTH, weighted_model

from medusa_trt.export.graphs.verify_graph import trace_verify
from medusa_trt.export.graphs.verify_module import VerifyModule
from medusa_trt.export.modeling.operator_attention import CachedAttention
from medusa_trt.export.modeling.support import refuse_unsupported


def test_the_model_is_given_back_unchanged() -> None:
    model = weighted_model(FAMILIES["llama"])
    tokens = torch.arange(20)[None]
    attributes = model.model.rotary_emb, model.config._attn_implementation
    with torch.no_grad():
        before = model(tokens).logits
    refuse_unsupported(model, MAX_LENGTH)
    trace_verify(VerifyModule(model, MAX_LENGTH, CachedAttention), opset=23)
    assert (model.model.rotary_emb, model.config._attn_implementation) == attributes
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, before)


def test_tracing_tells_its_stages(capsys: pytest.CaptureFixture[str]) -> None:
    model = weighted_model(FAMILIES["llama"])
    trace_verify(VerifyModule(model, MAX_LENGTH, CachedAttention), opset=23, progress=print)
    assert capsys.readouterr().out.splitlines() == [
        "  taking its operations apart",
        "  writing its operations in ONNX",
        "  simplifying the graph",
    ]
