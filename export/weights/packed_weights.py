"""Weights of 4 or 8 bits packed into 32-bit integers, as GPTQ, AWQ and compressed-tensors do.

They are unpacked to floating point: a linear layer of K inputs and N outputs becomes the (N, K)
matrix of the model's parameter.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from medusa_trt.errors import ExportError
from medusa_trt.export.weights.lazy_tensor import Array

_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight columns lies at each position of an integer, from its low end."""

_AUTO_ROUND: dict[str, dict[str, str]] = {
    "auto_round:auto_gptq": {"quant_method": "gptq"},
    "auto_round": {"quant_method": "gptq", "checkpoint_format": "gptq_v2"},
    "auto_round:gptqmodel": {"quant_method": "gptq", "checkpoint_format": "gptq_v2"},
    "auto_round:auto_awq": {"quant_method": "awq"},
}
"""The forms of AutoRound in the terms of other tools (auto-round 0.16.1, inference/backend.py)."""

Tensors = Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class Packing:
    """The form in which a checkpoint packs its linear layers.

    Attributes:
        method: name of the method in the config.
        bits: bits of a code.
        group_size: inputs that share a scale; None if all do, or if the config does not say.
        suffixes: endings of the names of the tensors that make one weight; the first one is packed.
        optional: those of the suffixes whose tensors may be missing.
        unpack: (tensors by suffix, this) → (N, K) float32.
        exceptions: bits and group sizes of single layers, by a regular expression for their names.
    """

    method: str
    bits: int
    group_size: int | None
    suffixes: tuple[str, ...]
    optional: tuple[str, ...]
    unpack: Callable[[Tensors, "Packing"], Array]
    exceptions: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def find_layer(self, layer: str) -> "Packing":
        """Finds the form of one layer.

        Raises:
            ExportError: it is not supported.
        """
        for pattern, values in self.exceptions.items():
            if re.match(pattern, layer):
                bits, size = values.get("bits", self.bits), values.get("group_size")
                _check_bits(self.method, bits)
                size = self.group_size if size is None else size if size > 0 else None
                return replace(self, bits=bits, group_size=size)
        return self

    @property
    def name(self) -> str:
        """The method and its bits, for messages."""
        return f"{self.method} of {self.bits} bits"


def packing_from_config(config: Mapping[str, Any]) -> Packing | None:
    """Reads the packing that a model's `quantization_config` describes; None if it is unknown.

    Raises:
        ExportError: it is known, in a form that is not supported.
    """
    method = str(config.get("quant_method"))
    suffixes: tuple[str, ...]
    optional: tuple[str, ...]
    size = config.get("group_size", config.get("q_group_size"))
    form = str(config.get("packing_format", "auto_round:auto_gptq"))
    if method == "auto-round" and form in _AUTO_ROUND:
        # AutoRound packs as other tools do.
        renamed = _AUTO_ROUND[form] | {"dynamic": config.get("extra_config") or {}}
        packing = packing_from_config({**config, **renamed})
        return None if packing is None else replace(packing, method=method)
    if method == "gptq":
        second = config.get("checkpoint_format") == "gptq_v2"
        bits, unpack = config.get("bits"), _unpack_gptq_v2 if second else _unpack_gptq
        suffixes, optional = ("qweight", "qzeros", "scales", "g_idx"), ("g_idx",)
    elif method == "awq":
        if str(config.get("version", "gemm")).lower() != "gemm":
            raise ExportError(f"AWQ weights in the form {config['version']!r} are not supported")
        bits, unpack = config.get("bits", config.get("w_bit")), _unpack_awq
        suffixes, optional = ("qweight", "qzeros", "scales"), ()
    elif method == "compressed-tensors" and config.get("format") == "pack-quantized":
        scheme = _read_compressed_scheme(config)
        bits, size, unpack = scheme.get("num_bits"), scheme.get("group_size"), _unpack_compressed
        suffixes = ("weight_packed", "weight_scale", "weight_shape", "weight_g_idx")
        optional = ("weight_g_idx",)
        if not scheme.get("symmetric", True):
            suffixes = (*suffixes, "weight_zero_point")
    else:
        return None
    bits = _check_bits(method, bits)
    group_size = size if isinstance(size, int) and size > 0 else None
    exceptions = {
        _make_layer_pattern(name): values
        for name, values in (config.get("dynamic") or {}).items()
        if not name.startswith("-:")  # These layers are not packed.
    }
    return Packing(method, bits, group_size, suffixes, optional, unpack, exceptions)


def _check_bits(method: str, bits: object) -> int:
    allowed = (4,) if method == "awq" else (4, 8)
    if not isinstance(bits, int) or bits not in allowed:
        raise ExportError(f"{method} weights of {bits} bits are not supported: only of {allowed}")
    return bits


def _make_layer_pattern(name: str) -> str:
    """Makes a regular expression of a layer's name; GPTQModel names layers by expressions."""
    is_expression = name.startswith("+:") or any(letter in name for letter in "*+[(^$\\|")
    return name.removeprefix("+:") if is_expression else f"{re.escape(name)}$"


def _read_compressed_scheme(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Reads the scheme that compressed-tensors names for the weights."""
    groups = list(config.get("config_groups", {}).values())
    schemes: list[dict[str, Any]] = [group.get("weights") or {} for group in groups]
    if len(schemes) != 1:
        raise ExportError(
            f"compressed-tensors weights in {len(schemes)} kinds of groups are not supported: "
            "only of one"
        )
    if config.get("transform_config"):
        raise ExportError("compressed-tensors weights with rotations are not supported")
    strategy, kind = schemes[0].get("strategy"), schemes[0].get("type", "int")
    if strategy not in (None, "group", "channel", "tensor") or kind != "int":
        raise ExportError(
            f"compressed-tensors weights of type {kind!r} by {strategy!r} are not supported"
        )
    return schemes[0]


def _unpack_gptq(tensors: Tensors, packing: Packing) -> Array:
    """The first format of GPTQ stores the packed zero points less one in each field.

    Its tools subtract from whole integers, so a zero point of 0 borrows from the field above it.
    """
    ones = sum(1 << shift for shift in range(0, 32, packing.bits))
    stored = np.ascontiguousarray(tensors["qzeros"]).view(np.uint32)
    return _unpack_gptq_v2({**tensors, "qzeros": stored + np.uint32(ones)}, packing)


def _unpack_gptq_v2(tensors: Tensors, packing: Packing) -> Array:
    """Codes (K / 8, N), zero points (groups, N / 8), scales (groups, N), at 4 bits."""
    codes = _unpack_codes(tensors["qweight"].T, packing.bits).T
    zeros = _unpack_codes(tensors["qzeros"], packing.bits)
    scales = tensors["scales"].astype(np.float32)
    group = _find_groups(len(codes), len(scales), packing, tensors.get("g_idx"))
    weight: Array = ((codes - zeros[group]) * scales[group]).T
    return weight


def _unpack_awq(tensors: Tensors, packing: Packing) -> Array:
    """Codes (K, N / 8), zero points (groups, N / 8), scales (groups, N)."""
    order = np.argsort(_AWQ_ORDER)
    codes, zeros = (
        _unpack_codes(tensors[key], packing.bits).reshape(len(tensors[key]), -1, 8)[..., order]
        for key in ("qweight", "qzeros")
    )
    scales = tensors["scales"].astype(np.float32)
    codes, zeros = codes.reshape(len(codes), -1), zeros.reshape(len(zeros), -1)
    group = _find_groups(len(codes), len(scales), packing)
    weight: Array = ((codes - zeros[group]) * scales[group]).T
    return weight


def _unpack_compressed(tensors: Tensors, packing: Packing) -> Array:
    """Codes (N, K / 8) and zero points (N / 8, groups) from the most negative one, scales
    (N, groups), at 4 bits."""
    num_outputs, num_inputs = (int(size) for size in tensors["weight_shape"])
    middle = 1 << (packing.bits - 1)
    codes = _unpack_codes(tensors["weight_packed"], packing.bits)[:, :num_inputs] - middle
    scales = tensors["weight_scale"].astype(np.float32)
    scales = np.broadcast_to(scales.reshape(-1, scales.shape[-1]), (num_outputs, scales.shape[-1]))
    order = tensors.get("weight_g_idx")
    if order is not None and (order < 0).all():  # as it is written where there is no order
        order = None
    group = _find_groups(num_inputs, scales.shape[1], packing, order)
    if "weight_zero_point" in tensors:
        zeros = _unpack_codes(tensors["weight_zero_point"].T, packing.bits).T[:num_outputs] - middle
        codes = codes - zeros[:, group]
    return codes * scales[:, group]


def _find_groups(
    num_inputs: int, num_groups: int, packing: Packing, stored: Array | None = None
) -> Array:
    """Finds the scale of each input, (K,). The last group may be smaller than the others.

    Raises:
        ExportError: the groups are not those of the config.
    """
    size = packing.group_size or -(-num_inputs // num_groups)
    if -(-num_inputs // size) != num_groups:
        raise ExportError(
            f"{packing.name}: {num_groups} scales for {num_inputs} inputs, the config says one for "
            f"{packing.group_size}: the checkpoint is damaged, or its config is another one's"
        )
    if stored is None:
        return np.arange(num_inputs) // size
    if stored.shape != (num_inputs,) or stored.min() < 0 or stored.max() >= num_groups:
        raise ExportError(f"{packing.name}: g_idx names groups that do not exist: it is damaged")
    return stored


def _unpack_codes(packed: Array, bits: int) -> Array:
    """Unpacks (rows, n) int32 to (rows, n * 32 / bits) int32, from the low end of each integer."""
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    unsigned = np.ascontiguousarray(packed).view(np.uint32)
    codes = (unsigned[..., None] >> shifts) & ((1 << bits) - 1)
    return codes.reshape(len(packed), -1).astype(np.int32)
