"""The heads graph against the heads that it is traced from."""

import onnx_ir as ir
import onnxruntime
import pytest
import torch
from support.checkpoints.checkpoint_tensors import heads_from_tensors
from support.tiny_models import (
    HIDDEN_SIZE,
    VOCAB_SIZE,
    head_tensors,
)

from medusa_trt.export.graphs.heads_graph import trace_heads_module
from medusa_trt.export.graphs.heads_module import HeadsModule
from medusa_trt.runtime import tensors as names


def truncated_heads() -> dict[str, torch.Tensor]:
    """Heads that choose from every third token."""
    token_map = torch.arange(0, VOCAB_SIZE, 3)
    return head_tensors(vocab_size=len(token_map)) | {"token_map": token_map}


@pytest.mark.parametrize(
    "tensors",
    [
        head_tensors(),
        head_tensors(vocab_size=None, num_layers=1),
        head_tensors(vocab_size=None) | {"token_map": torch.arange(0, VOCAB_SIZE, 3)},
        truncated_heads(),
    ],
    ids=["own", "shared", "shared-truncated", "truncated"],
)
def test_the_heads_graph_drafts_what_the_heads_do(tensors: dict[str, torch.Tensor]) -> None:
    unembedding = torch.randn(VOCAB_SIZE, HIDDEN_SIZE, generator=torch.Generator().manual_seed(3))
    heads = heads_from_tensors(tensors, "heads")
    module = HeadsModule(heads, unembedding, top_k=5)
    model = trace_heads_module(module, HIDDEN_SIZE, opset=23)
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    for seed in range(5):
        hidden = torch.randn(2, HIDDEN_SIZE, generator=torch.Generator().manual_seed(seed))
        (draft_ids,) = session.run([names.DRAFT_IDS], {names.HIDDEN: hidden.numpy()})
        assert (draft_ids == module(hidden).numpy()).all()
        assert draft_ids.shape == (2, 4, 5)
        if heads.token_map is not None:
            assert (draft_ids % 3 == 0).all()
