"""Checkpoints of packed integers, as GPTQ, AWQ and compressed-tensors write them."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A quantized (N, K) matrix: codes (K, N), zero points and scales (groups, N)."""

    codes: Array
    zeros: Array
    scales: Array
    group: Array
    """The group of each input."""

    @property
    def signed(self) -> Array:
        """Codes (K, N) less their zero points."""
        difference: Array = self.codes - self.zeros[self.group]
        return difference

    @property
    def exact(self) -> Array:
        """The (N, K) matrix."""
        return (self.signed * self.scales[self.group].astype(np.float32)).T


def packed(codes: Array, bits: int) -> Array:
    """(rows, n) codes into (rows, n * bits / 32) int32, the first at the low end."""
    per_integer = 32 // bits
    result = np.zeros((len(codes), codes.shape[1] // per_integer), np.uint32)
    for row in range(len(codes)):
        for column in range(codes.shape[1]):
            integer, place = divmod(column, per_integer)
            result[row, integer] |= np.uint32(int(codes[row, column]) << (bits * place))
    return result.view(np.int32)


def grid_of(
    weight: Array,
    bits: int,
    rng: np.random.Generator,
    *,
    size: int = 32,
    spread: int = 1,
    ordered: bool = False,
    zero: int | None = None,
) -> Grid:
    """An (N, K) matrix in groups of inputs.

    Zero points are off the middle by up to `spread`, or all are `zero`, for scales by which the
    largest magnitude takes the codes above it.
    """
    groups = weight.T.reshape(-1, size, len(weight))
    half = 1 << (bits - 1)
    steps = half if zero is None else 2 * half - 1 - zero
    scales = (np.abs(groups).max(1) / steps).astype(np.float16)
    zeros = half + rng.integers(-spread, spread + 1, scales.shape)
    if zero is not None:
        zeros[:] = zero
    codes = np.rint(groups / scales[:, None].astype(np.float32)) + zeros[:, None]
    codes = codes.clip(0, 2 * half - 1).astype(int).reshape(-1, len(weight))
    order = rng.permutation(len(codes)) if ordered else np.arange(len(codes))
    return Grid(
        codes=codes, zeros=zeros, scales=scales, group=(np.arange(len(codes)) // size)[order]
    )


def less_one(integers: Array, bits: int) -> Array:
    """Packed integers with one taken from each field, which borrows from the next where it is 0."""
    ones = sum(1 << place for place in range(0, 32, bits))
    return (integers.view(np.uint32) - np.uint32(ones)).view(np.int32)


def gptq_tensors(grid: Grid, bits: int) -> dict[str, Array]:
    return {
        "qweight": packed(grid.codes.T, bits).T,
        "qzeros": less_one(packed(grid.zeros, bits), bits),
        "scales": grid.scales,
        "g_idx": grid.group.astype(np.int32),
    }


def awq_tensors(grid: Grid, bits: int) -> dict[str, Array]:
    places = (0, 2, 4, 6, 1, 3, 5, 7)

    def interleaved(columns: Array) -> Array:
        eights = columns.reshape(len(columns), -1, 8)
        return np.stack([eights[..., place] for place in places], -1).reshape(columns.shape)

    return {
        "qweight": packed(interleaved(grid.codes), bits),
        "qzeros": packed(interleaved(grid.zeros), bits),
        "scales": grid.scales,
    }


def compressed_tensors(grid: Grid, bits: int) -> dict[str, Array]:
    return {
        "weight_packed": packed(grid.codes.T, bits),
        "weight_scale": grid.scales.T,
        "weight_shape": np.array(grid.codes.T.shape),
    }


def asymmetric_compressed_tensors(grid: Grid, bits: int) -> dict[str, Array]:
    return {
        **compressed_tensors(grid, bits),
        "weight_zero_point": packed(grid.zeros, bits).T,
        "weight_g_idx": grid.group.astype(np.int32),
    }


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way to pack, and what the model's config says of it."""

    tensors_of: Callable[[Grid, int], dict[str, Array]]
    bits: int
    config: Mapping[str, Any]
    has_zeros: bool = True
    has_order: bool = False


COMPRESSED = {"quant_method": "compressed-tensors", "format": "pack-quantized"}


def shifted_gptq_tensors(grid: Grid, bits: int) -> dict[str, Array]:
    """The second format of GPTQ stores zero points as they are."""
    return {**gptq_tensors(grid, bits), "qzeros": packed(grid.zeros, bits)}


AUTO_ROUND = {"quant_method": "auto-round", "bits": 4, "group_size": 32, "sym": False}
METHODS = {
    "gptq-4": Method(
        tensors_of=gptq_tensors,
        bits=4,
        config={"quant_method": "gptq", "bits": 4},
        has_order=True,
    ),
    "gptq-8": Method(
        tensors_of=gptq_tensors,
        bits=8,
        config={"quant_method": "gptq", "bits": 8},
        has_order=True,
    ),
    "awq": Method(tensors_of=awq_tensors, bits=4, config={"quant_method": "awq", "bits": 4}),
    "gptq-8-of-single-layers": Method(
        tensors_of=gptq_tensors,
        bits=8,
        config={
            "quant_method": "gptq",
            "bits": 4,
            "group_size": 128,
            "dynamic": {"-:.*lm_head": {}, r"+:.*\.layers\.": {"bits": 8, "group_size": 32}},
        },
    ),
    "auto-round": Method(tensors_of=gptq_tensors, bits=4, config=AUTO_ROUND),
    "auto-round-shifted": Method(
        tensors_of=shifted_gptq_tensors,
        bits=4,
        config={**AUTO_ROUND, "packing_format": "auto_round:gptqmodel"},
    ),
    "auto-round-awq": Method(
        tensors_of=awq_tensors,
        bits=4,
        config={
            **AUTO_ROUND,
            "packing_format": "auto_round:auto_awq",
            "extra_config": {"lm_head": {"bits": 16, "data_type": "float"}},
        },
    ),
    "compressed-4": Method(
        tensors_of=compressed_tensors,
        bits=4,
        config={**COMPRESSED, "config_groups": {"group_0": {"weights": {"num_bits": 4}}}},
        has_zeros=False,
    ),
    "compressed-4-asymmetric": Method(
        tensors_of=asymmetric_compressed_tensors,
        bits=4,
        config={
            **COMPRESSED,
            "config_groups": {
                "group_0": {
                    "weights": {
                        "num_bits": 4,
                        "symmetric": False,
                        "strategy": "group",
                        "group_size": 32,
                        "actorder": "group",
                    }
                }
            },
        },
        has_order=True,
    ),
}


def pack_checkpoint(folder: Path, method: Method, grids: Mapping[str, Grid]) -> None:
    """Replaces linear layers of a saved model, by the names of their weights."""
    tensors = load_file(folder / "model.safetensors")
    for name, grid in grids.items():
        del tensors[name]
        tensors |= {
            f"{name.removesuffix('.weight')}.{suffix}": torch.from_numpy(
                np.ascontiguousarray(array)
            )
            for suffix, array in method.tensors_of(grid, method.bits).items()
        }
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({**config, "quantization_config": dict(method.config)})
    )
