"""Weights of GGUF files."""

from pathlib import Path

import numpy as np
import pytest

from medusa_trt.export.models.base_model import BaseModel
from medusa_trt.export.models.gguf_weights import weights_from_gguf
from medusa_trt.export.weights.streamed_model import make_empty_model


@pytest.mark.slow
def test_a_gguf_file_gives_the_weights_that_transformers_reads(base_model: BaseModel) -> None:
    source, loaded = base_model.source, base_model.model
    assert source.gguf_file is not None
    weights = weights_from_gguf(
        make_empty_model(loaded.config), Path(source.location) / source.gguf_file
    )
    assert weights is not None
    parameters = dict(loaded.named_parameters(remove_duplicate=False))
    assert weights.keys() == parameters.keys()
    for name in (
        "lm_head.weight",
        "model.norm.weight",
        "model.layers.3.self_attn.q_proj.weight",
        "model.layers.3.self_attn.k_proj.weight",
        "model.layers.29.mlp.down_proj.weight",
    ):
        assert np.array_equal(weights[name].stored(), parameters[name].detach().numpy())
