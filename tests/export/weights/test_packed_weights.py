"""Checkpoints of packed integers against the matrices that they stand for."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.checkpoints.packed_checkpoints import (
    COMPRESSED,
    METHODS,
    Grid,
    grid_of,
    pack_checkpoint,
)
from support.tiny_models import llama_config, random_model, save_tiny_model

from medusa_trt.errors import ExportError
from medusa_trt.export.models.base_model import open_base_model
from medusa_trt.export.models.source import source_from_name
from medusa_trt.export.weights.packed_weights import packing_from_config
from medusa_trt.export.weights.streamed_model import supply_weights


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
    with torch.no_grad(), supply_weights(base.model, base.weights):
        assert torch.allclose(base.model(tokens).logits, exact(tokens).logits, atol=1e-4)


def test_the_files_of_autogptq_are_read(tmp_path: Path) -> None:
    """It described the quantization in a file of its own, and named the weights after it."""
    folder = save_tiny_model(tmp_path / "model")
    rng = np.random.default_rng(0)
    key = "model.layers.0.self_attn.q_proj.weight"
    grid = grid_of(random_model(llama_config()).state_dict()[key].numpy(), 4, rng)
    pack_checkpoint(folder, METHODS["gptq-4"], {key: grid})
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "quantize_config.json").write_text(json.dumps({"bits": 4, "group_size": 32}))
    (folder / "model.safetensors").rename(folder / "gptq_model-4bit-32g.safetensors")
    weight = open_base_model(source_from_name(str(folder))).weights[key]
    assert weight.quantization == "gptq of 4 bits"
    assert np.array_equal(weight.stored(), grid.exact)


SIZED: dict[str, dict[str, Any]] = {
    "gptq-4": {"quant_method": "gptq", "bits": 4, "group_size": 64},
    "awq": {"quant_method": "awq", "bits": 4, "q_group_size": 64},
    "compressed-4": {
        **COMPRESSED,
        "config_groups": {
            "group_0": {"weights": {"num_bits": 4, "strategy": "group", "group_size": 64}}
        },
    },
}
"""Configs that name the size of groups."""


def grid_with_a_smaller_group(has_zeros: bool) -> Grid:
    """96 inputs in groups of 64, 16 outputs."""
    rng = np.random.default_rng(0)
    zeros = rng.integers(1, 15, (2, 16)) if has_zeros else np.full((2, 16), 8)
    return Grid(
        codes=rng.integers(0, 16, (96, 16)),
        zeros=zeros,
        scales=rng.uniform(0.5, 1.5, (2, 16)).astype(np.float16),
        group=np.arange(96) // 64,
    )


@pytest.mark.parametrize("name", SIZED)
def test_the_last_group_may_be_smaller(name: str) -> None:
    method = METHODS[name]
    grid = grid_with_a_smaller_group(method.has_zeros)
    tensors = method.tensors_of(grid, 4)
    tensors.pop("g_idx", None)
    packing = packing_from_config(SIZED[name])
    assert packing is not None
    assert np.array_equal(packing.unpack(tensors, packing), grid.exact)


def test_zero_points_of_zero_borrow_from_the_field_above() -> None:
    rng = np.random.default_rng(0)
    zeros = rng.integers(0, 3, (2, 16))
    zeros[0] = 0
    codes, scales = rng.integers(0, 16, (96, 16)), np.ones((2, 16), np.float16)
    grid = Grid(codes=codes, zeros=zeros, scales=scales, group=np.arange(96) // 64)
    packing = packing_from_config(SIZED["gptq-4"])
    assert packing is not None
    assert np.array_equal(
        packing.unpack(METHODS["gptq-4"].tensors_of(grid, 4), packing), grid.exact
    )


def test_one_scale_may_serve_a_whole_matrix() -> None:
    rng = np.random.default_rng(0)
    grid = Grid(
        codes=rng.integers(0, 16, (96, 16)),
        zeros=np.full((1, 16), 8),
        scales=np.full((1, 16), 0.75, np.float16),
        group=np.zeros(96, int),
    )
    tensors = METHODS["compressed-4"].tensors_of(grid, 4)
    tensors["weight_scale"] = tensors["weight_scale"][0]
    packing = packing_from_config(
        {**COMPRESSED, "config_groups": {"g": {"weights": {"num_bits": 4, "strategy": "tensor"}}}}
    )
    assert packing is not None
    assert np.array_equal(packing.unpack(tensors, packing), grid.exact)


@pytest.mark.parametrize("name", SIZED)
def test_other_groups_than_the_configs_are_refused(name: str) -> None:
    method = METHODS[name]
    tensors = method.tensors_of(grid_with_a_smaller_group(method.has_zeros), 4)
    packing = packing_from_config(json.loads(json.dumps(SIZED[name]).replace("64", "32")))
    assert packing is not None
    with pytest.raises(ExportError, match="2 scales for 96 inputs, the config says one for 32"):
        packing.unpack(tensors, packing)


@pytest.mark.parametrize("group", [-1, 2])
def test_groups_that_do_not_exist_are_refused(group: int) -> None:
    grid = grid_with_a_smaller_group(has_zeros=True)
    tensors = METHODS["gptq-4"].tensors_of(grid, 4)
    tensors["g_idx"][7] = group
    packing = packing_from_config(SIZED["gptq-4"])
    assert packing is not None
    with pytest.raises(ExportError, match="groups that do not exist"):
        packing.unpack(tensors, packing)


def test_codes_of_other_bits_than_the_configs_are_refused(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model")
    rng = np.random.default_rng(0)
    grids = {
        key: grid_of(parameter.detach().numpy(), 8, rng, size=parameter.shape[1])
        for key, parameter in random_model(llama_config()).named_parameters()
        if "_proj." in key
    }
    pack_checkpoint(folder, METHODS["gptq-8"], grids)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["bits"] = 4
    (folder / "config.json").write_text(json.dumps(config))
    base = open_base_model(source_from_name(str(folder)))
    with pytest.raises(ExportError, match=r"q_proj.* (is|does not fit)|g_idx"):
        base.weights["model.layers.0.self_attn.q_proj.weight"].stored()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"quant_method": "gptq", "bits": 3}, "gptq weights of 3 bits"),
        ({"quant_method": "auto-round", "bits": 2}, "gptq weights of 2 bits"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "'gemv' are not supported"),
        ({**COMPRESSED, "config_groups": {"a": {}, "b": {}}}, "in 2 kinds of groups"),
        ({**COMPRESSED, "config_groups": {"a": {}}, "transform_config": {"u": {}}}, "rotations"),
        ({**COMPRESSED, "config_groups": {"g": {"weights": {"strategy": "block"}}}}, "by 'block'"),
        ({**COMPRESSED, "config_groups": {"g": {"weights": {"type": "float"}}}}, "type 'float'"),
    ],
)
def test_forms_that_would_come_out_wrong_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        packing_from_config(config)


def test_other_methods_are_left_to_transformers() -> None:
    assert packing_from_config({"quant_method": "bitsandbytes"}) is None
