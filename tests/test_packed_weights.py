"""Checkpoints of packed integers against the matrices that they stand for."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reference.packed_checkpoints import COMPRESSED, METHODS, grid_of, pack_checkpoint
from tiny_models import llama_config, random_model, save_tiny_model

from medusa_trt.errors import ExportError
from medusa_trt.export.base_model import open_base_model, source_from_name
from medusa_trt.export.packed_weights import packing_from_config
from medusa_trt.export.streamed_model import weights_at_hand


@pytest.mark.parametrize("name", METHODS)
def test_packed_checkpoints_are_what_they_stand_for(name: str, tmp_path: Path) -> None:
    method = METHODS[name]
    folder = save_tiny_model(tmp_path / "model")
    rng = np.random.default_rng(0)
    exact = random_model(llama_config())
    grids = {}
    for key, parameter in exact.named_parameters():
        if "_proj." in key:
            grids[key] = grid_of(
                parameter.detach().numpy(),
                method.bits,
                rng,
                spread=int(method.has_zeros),
                ordered=method.has_order,
            )
            parameter.data = torch.from_numpy(grids[key].exact.astype(np.float32).copy())
    pack_checkpoint(folder, method, grids)
    base = open_base_model(source_from_name(str(folder)))
    tokens = torch.arange(40)[None]
    with torch.no_grad(), weights_at_hand(base.model, base.weights):
        assert torch.allclose(base.model(tokens).logits, exact(tokens).logits, atol=1e-4)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"quant_method": "gptq", "bits": 3}, "gptq weights of 3 bits"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "'gemv' are not supported"),
        ({**COMPRESSED, "config_groups": {"g": {"weights": {"symmetric": False}}}}, "zero points"),
    ],
)
def test_forms_that_would_come_out_wrong_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        packing_from_config(config)


def test_other_methods_are_left_to_transformers() -> None:
    assert packing_from_config({"quant_method": "bitsandbytes"}) is None
