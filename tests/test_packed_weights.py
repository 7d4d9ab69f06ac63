"""Checkpoints of packed integers against the matrices that they stand for."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from tiny_models import llama_config, random_model, save_tiny_model

from medusa_trt.errors import ExportError
from medusa_trt.export.base_model import open_base_model, source_from_name
from medusa_trt.export.packed_weights import packing_from_config
from medusa_trt.export.streamed_model import weights_at_hand

GROUP = 32
Array = NDArray[Any]
Layer = tuple[Array, dict[str, Array]]
"""The exact matrix (N, K), and the tensors that stand for it."""


def packed(codes: Array, bits: int) -> Array:
    """(rows, n) codes into (rows, n * bits / 32) int32, the first at the low end."""
    per_integer = 32 // bits
    result = np.zeros((len(codes), codes.shape[1] // per_integer), np.uint32)
    for row in range(len(codes)):
        for column in range(codes.shape[1]):
            integer, place = divmod(column, per_integer)
            result[row, integer] |= np.uint32(int(codes[row, column]) << (bits * place))
    return result.view(np.int32)


def quantized(weight: Array, bits: int, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    """Codes (K, N), zero points (groups, N) and scales of an (N, K) matrix."""
    groups = weight.T.reshape(-1, GROUP, len(weight))
    scales = (np.abs(groups).max(1) / (1 << (bits - 1))).astype(np.float16)
    half = 1 << (bits - 1)
    zeros = half + rng.integers(-1, 2, scales.shape)
    codes = np.rint(groups / scales[:, None].astype(np.float32)) + zeros[:, None]
    return codes.clip(0, 2 * half - 1).astype(int).reshape(-1, len(weight)), zeros, scales


def gptq_layer(weight: Array, bits: int, rng: np.random.Generator) -> Layer:
    codes, zeros, scales = quantized(weight, bits, rng)
    order = rng.permutation(len(codes))
    group = (np.arange(len(codes)) // GROUP)[order].astype(np.int32)
    exact = (codes - zeros[group]) * scales[group].astype(np.float32)
    return exact.T, {
        "qweight": packed(codes.T, bits).T,
        "qzeros": packed(zeros - 1, bits),
        "scales": scales,
        "g_idx": group,
    }


def awq_layer(weight: Array, bits: int, rng: np.random.Generator) -> Layer:
    codes, zeros, scales = quantized(weight, bits, rng)
    exact = (codes - zeros.repeat(GROUP, 0)) * scales.repeat(GROUP, 0).astype(np.float32)
    places = (0, 2, 4, 6, 1, 3, 5, 7)

    def interleaved(columns: Array) -> Array:
        eights = columns.reshape(len(columns), -1, 8)
        return np.stack([eights[..., place] for place in places], -1).reshape(columns.shape)

    return exact.T, {
        "qweight": packed(interleaved(codes), bits),
        "qzeros": packed(interleaved(zeros), bits),
        "scales": scales,
    }


def compressed_layer(weight: Array, bits: int, rng: np.random.Generator) -> Layer:
    codes, _, scales = quantized(weight, bits, rng)
    exact = (codes - (1 << (bits - 1))) * scales.repeat(GROUP, 0).astype(np.float32)
    return exact.T, {
        "weight_packed": packed(codes.T, bits),
        "weight_scale": scales.T,
        "weight_shape": np.array(weight.shape),
    }


COMPRESSED = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
METHODS: dict[str, tuple[Any, dict[str, Any], int]] = {
    "gptq-4": (gptq_layer, {"quant_method": "gptq", "bits": 4, "group_size": GROUP}, 4),
    "gptq-8": (gptq_layer, {"quant_method": "gptq", "bits": 8, "group_size": GROUP}, 8),
    "awq": (awq_layer, {"quant_method": "awq", "bits": 4, "group_size": GROUP}, 4),
    "compressed-4": (
        compressed_layer,
        {**COMPRESSED, "config_groups": {"group_0": {"weights": {"num_bits": 4}}}},
        4,
    ),
}


@pytest.mark.parametrize("name", METHODS)
def test_packed_checkpoints_are_what_they_stand_for(name: str, tmp_path: Path) -> None:
    layer_of, quantization, bits = METHODS[name]
    folder = save_tiny_model(tmp_path / "model")
    rng = np.random.default_rng(0)
    exact = random_model(llama_config())
    tensors = load_file(folder / "model.safetensors")
    for key, parameter in exact.named_parameters():
        if "_proj." in key:
            values, parts = layer_of(parameter.detach().numpy(), bits, rng)
            parameter.data = torch.from_numpy(np.ascontiguousarray(values, np.float32))
            layer = key.removesuffix(".weight")
            del tensors[key]
            tensors |= {
                f"{layer}.{suffix}": torch.from_numpy(np.ascontiguousarray(array))
                for suffix, array in parts.items()
            }
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": quantization}))
    base = open_base_model(source_from_name(str(folder)))
    assert base.warning is not None and "dequantized" in base.warning
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
