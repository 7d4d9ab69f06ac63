"""Weights of 4 or 8 bits packed into 32-bit integers, as GPTQ, AWQ and compressed-tensors do.

They are unpacked to floating point: a linear layer of K inputs and N outputs becomes the (N, K)
matrix of the model's parameter.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from medusa_trt.errors import ExportError
from medusa_trt.export.lazy_tensor import Array

_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight columns lies at each position of an integer, from its low end."""


@dataclass(frozen=True, slots=True)
class Packing:
    """How a checkpoint packs its linear layers.

    Attributes:
        method: what its config calls it.
        bits: of a code.
        suffixes: of the tensors that make one weight; the first one is packed.
        optional: of those that may be missing.
        unpack: (tensors by suffix, bits) → (N, K) float32.
    """

    method: str
    bits: int
    suffixes: tuple[str, ...]
    optional: tuple[str, ...]
    unpack: Callable[[Mapping[str, Array], int], Array]

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.method} of {self.bits} bits"


def packing_from_config(config: Mapping[str, Any]) -> Packing | None:
    """The packing that a model's `quantization_config` describes, or None if it is no known one.

    Raises:
        ExportError: it is known, in a form that is not supported.
    """
    method = str(config.get("quant_method"))
    suffixes: tuple[str, ...]
    optional: tuple[str, ...]
    if method == "gptq":
        second = config.get("checkpoint_format") == "gptq_v2"
        bits, unpack = config.get("bits"), _unpacked_gptq_v2 if second else _unpacked_gptq
        suffixes, optional = ("qweight", "qzeros", "scales", "g_idx"), ("g_idx",)
    elif method == "awq":
        if str(config.get("version", "gemm")).lower() != "gemm":
            raise ExportError(f"AWQ weights in the form {config['version']!r} are not supported")
        bits, unpack = config.get("bits", config.get("w_bit")), _unpacked_awq
        suffixes, optional = ("qweight", "qzeros", "scales"), ()
    elif method == "compressed-tensors" and config.get("format") == "pack-quantized":
        groups = list(config.get("config_groups", {}).values())
        schemes = [group.get("weights") or {} for group in groups]
        bits = schemes[0].get("num_bits") if len(schemes) == 1 else None
        if not all(scheme.get("symmetric", True) for scheme in schemes):
            raise ExportError("compressed-tensors weights with zero points are not supported")
        if any(scheme.get("actorder") == "group" for scheme in schemes):
            raise ExportError("compressed-tensors weights with activation order are not supported")
        unpack = _unpacked_compressed
        suffixes, optional = ("weight_packed", "weight_scale", "weight_shape"), ()
    else:
        return None
    allowed = (4,) if method == "awq" else (4, 8)
    if not isinstance(bits, int) or bits not in allowed:
        raise ExportError(f"{method} weights of {bits} bits are not supported: only of {allowed}")
    return Packing(method, bits, suffixes, optional, unpack)


def _unpacked_gptq(tensors: Mapping[str, Array], bits: int) -> Array:
    """The first format of GPTQ stores zero points less one."""
    return _unpacked_gptq_v2(tensors, bits, zero_offset=1)


def _unpacked_gptq_v2(tensors: Mapping[str, Array], bits: int, zero_offset: int = 0) -> Array:
    """Codes (K / 8, N), zero points (groups, N / 8), scales (groups, N), at 4 bits."""
    codes = _nibbles(tensors["qweight"].T, bits).T
    zeros = _nibbles(tensors["qzeros"], bits) + zero_offset
    scales = tensors["scales"].astype(np.float32)
    if "g_idx" in tensors:
        group = tensors["g_idx"]
    else:
        group = np.arange(len(codes)) // (len(codes) // len(scales))
    weight: Array = ((codes - zeros[group]) * scales[group]).T
    return weight


def _unpacked_awq(tensors: Mapping[str, Array], bits: int) -> Array:
    """Codes (K, N / 8), zero points (groups, N / 8), scales (groups, N)."""
    order = np.argsort(_AWQ_ORDER)
    codes, zeros = (
        _nibbles(tensors[key], bits).reshape(len(tensors[key]), -1, 8)[..., order]
        for key in ("qweight", "qzeros")
    )
    scales = tensors["scales"].astype(np.float32)
    codes, zeros = codes.reshape(len(codes), -1), zeros.reshape(len(zeros), -1)
    repeats = len(codes) // len(scales)
    return ((codes - zeros.repeat(repeats, 0)) * scales.repeat(repeats, 0)).T


def _unpacked_compressed(tensors: Mapping[str, Array], bits: int) -> Array:
    """Codes (N, K / 8) from the most negative one, scales (N, groups)."""
    num_outputs, num_inputs = (int(size) for size in tensors["weight_shape"])
    codes = _nibbles(tensors["weight_packed"], bits)[:, :num_inputs] - (1 << (bits - 1))
    scales = tensors["weight_scale"].astype(np.float32).reshape(num_outputs, -1)
    return codes * scales.repeat(num_inputs // scales.shape[1], 1)


def _nibbles(packed: Array, bits: int) -> Array:
    """(rows, n) int32 → (rows, n * 32 / bits) int32, from the low end of each integer."""
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    unsigned = np.ascontiguousarray(packed).view(np.uint32)
    codes = (unsigned[..., None] >> shifts) & ((1 << bits) - 1)
    return codes.reshape(len(packed), -1).astype(np.int32)
