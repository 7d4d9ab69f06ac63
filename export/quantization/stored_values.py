"""Rounded matrices in a file beside a quantization plan, which an export stores as they are."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from medusa_trt.errors import ExportError
from medusa_trt.export.quantization.grid import RoundedMatrix
from medusa_trt.export.quantization.plan import QuantizationPlan, ValuesFile
from medusa_trt.export.quantization.rounding import find_rounding
from medusa_trt.export.targets import Target, target_from_name
from medusa_trt.export.weights.lazy_tensor import Array, LazyTensor
from medusa_trt.export.weights.streamed_model import Weights
from medusa_trt.files import join_names, replace_file

VALUES_FILE = "quantization.safetensors"

_REMEDY = "make both anew with medusa-trt calibrate quantization --compensate"
_NUM_SAMPLES = 1024
"""Elements of a matrix by which it is recognized."""

_PART_BYTES = 1 << 20


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Format of a matrix, the inputs that share a scale, and the digest of the unrounded matrix."""

    format: str
    block_size: int
    digest: str


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the file says of itself.

    Attributes:
        basis: digest of all that the values were made from.
        weights: its matrices, by parameter name.
    """

    basis: str
    weights: dict[str, _Entry]


def digest_weight(weight: Array) -> str:
    """Hashes the shape of a matrix and some of its elements as float32."""
    flat = weight.reshape(-1)
    samples = flat[:: max(1, len(flat) // _NUM_SAMPLES)].astype(np.float32)
    return hashlib.sha256(repr(weight.shape).encode() + samples.tobytes()).hexdigest()


def save_values(
    path: Path,
    matrices: Mapping[str, RoundedMatrix],
    formats: Mapping[str, str],
    digests: Mapping[str, str],
    basis: str,
) -> None:
    """Writes rounded matrices whole or not at all.

    The mappings are by parameter name; `digests` are of the unrounded matrices.

    Raises:
        ExportError: the file cannot be written.
    """
    entries = {
        name: _Entry(formats[name], matrix.block_size, digests[name])
        for name, matrix in matrices.items()
    }
    tensors: dict[str, Array] = {}
    for name, matrix in matrices.items():
        is_narrow = formats[name] == "int4"
        tensors[f"{name}.codes"] = _pack_pairs(matrix.codes) if is_narrow else matrix.codes
        tensors[f"{name}.scales"] = matrix.scales
    header = msgspec.json.encode(_Header(basis=basis, weights=entries))
    with replace_file(path, ExportError) as temporary:
        save_file(tensors, temporary, {"medusa_trt": header.decode()})


def read_values(path: Path, basis: str) -> dict[str, RoundedMatrix] | None:
    """Reads all matrices of a file that were made from `basis`; None if there is no such file."""
    try:
        header = _read_header(path)
        if header.basis != basis:
            return None
        values = StoredValues(path, header.weights, "")
        return {name: values.read(name) for name in header.weights}
    except ExportError:
        return None


def describe_file(path: Path) -> ValuesFile:
    """Describes a file for the plan that lies beside it.

    Raises:
        ExportError: the file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while part := file.read(_PART_BYTES):
                digest.update(part)
    except OSError as error:
        raise ExportError(
            f"cannot read {path}, the rounded values of the plan beside it: {error.strerror}; "
            f"put it there, or {_REMEDY}"
        ) from error
    return ValuesFile(path.name, digest.hexdigest())


@dataclass(frozen=True, slots=True)
class StoredValues:
    """Rounded matrices that lie in a file, each of which is read when it is used.

    Attributes:
        path: the file.
        entries: its matrices, by parameter name.
        sha256: digest of the file.
    """

    path: Path
    entries: Mapping[str, _Entry]
    sha256: str

    def read(self, name: str) -> RoundedMatrix:
        """Reads a matrix.

        Raises:
            ExportError: the file is gone or damaged.
        """
        try:
            with safe_open(self.path, "numpy") as file:
                codes, scales = file.get_tensor(f"{name}.codes"), file.get_tensor(f"{name}.scales")
        except (OSError, SafetensorError) as error:
            raise ExportError(f"cannot read {name} in {self.path} ({error}): {_REMEDY}") from error
        if self.entries[name].format == "int4":
            codes = _unpack_pairs(codes)
        return RoundedMatrix(codes=codes, scales=scales, block_size=self.entries[name].block_size)

    def replace_weights(self, weights: Weights) -> Weights:
        """Replaces the weights of a model that the file has, under all names of tied ones.

        An export finds the scales of such values and stores them without rounding.
        """
        names = {weights[name].key: name for name in self.entries}
        return {
            other: self._wrap(names[weight.key], weight) if weight.key in names else weight
            for other, weight in weights.items()
        }

    def _wrap(self, name: str, weight: LazyTensor) -> LazyTensor:
        return LazyTensor(
            lambda: self.read(name).compute_values(),
            weight.sizes,
            ("stored values", self.sha256, name),
            weight.dtype,
            weight.name,
            weight.sources,
            f"{self.entries[name].format} with compensated rounding",
        )


def open_values(
    plan_path: Path, plan: QuantizationPlan, target: Target, weights: Weights
) -> StoredValues | None:
    """Opens the file that a plan names, and compares it with plan and model.

    Args:
        plan_path: the plan's file, beside which the other one lies.
        plan: the plan.
        target: what will run the weights.
        weights: the weights of the model.

    Returns:
        The values; None where the plan has none.

    Raises:
        ExportError: the file is missing or damaged, or was made for something else.
    """
    if not isinstance(plan.values, ValuesFile):
        return None
    path = plan_path.parent / Path(plan.values.file).name
    described = describe_file(path)
    if described.sha256 != plan.values.sha256:
        raise ExportError(
            f"{path} is truncated or is not the file that {plan_path} was written with (its "
            f"SHA-256 is {described.sha256[:12]}…, the plan has {plan.values.sha256[:12]}…): "
            f"{_REMEDY}"
        )
    rounding = find_rounding(target)
    if type(rounding) is not type(find_rounding(target_from_name(plan.target))):
        raise ExportError(
            f"{path} was made for target {plan.target}, {target.name} has other scales: make one "
            f"with medusa-trt calibrate quantization --compensate --target {target.name}"
        )
    header = _read_header(path)
    planned = {name: site.format for site in plan.sites for name in site.weights}
    _check_names(path, header, planned, weights)
    for name, entry in header.weights.items():
        if digest_weight(weights[name].stored()) != entry.digest:
            raise ExportError(
                f"{path} was made from another model: {name} {weights[name].sizes} of this one has "
                f"other values; give the model {plan.model}, or {_REMEDY}"
            )
    return StoredValues(path, header.weights, described.sha256)


def _check_names(path: Path, header: _Header, planned: Mapping[str, str], weights: Weights) -> None:
    for name, entry in header.weights.items():
        if planned.get(name) != entry.format:
            raise ExportError(
                f"{path} has {name} in {entry.format}, the plan beside it in "
                f"{planned.get(name, 'no format')}: {_REMEDY}"
            )
    if missing := header.weights.keys() - weights.keys():
        raise ExportError(
            f"{path} has {join_names(missing)}, which the model lacks: give the model that the "
            f"plan was made for, or {_REMEDY}"
        )


def _read_header(path: Path) -> _Header:
    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
        return msgspec.json.decode(metadata.get("medusa_trt", ""), type=_Header)
    except (OSError, SafetensorError, msgspec.DecodeError) as error:
        raise ExportError(f"{path} has no rounded values ({error}): {_REMEDY}") from error


def _pack_pairs(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Puts the codes of two neighbouring inputs in a byte, the first one in its low half."""
    low = codes.view(np.uint8) & np.uint8(15)
    packed: NDArray[np.uint8] = low[:, 0::2] | (low[:, 1::2] * np.uint8(16))
    return packed


def _unpack_pairs(packed: NDArray[np.uint8]) -> NDArray[np.int8]:
    codes = np.empty((len(packed), 2 * packed.shape[1]), np.int8)
    codes[:, 0::2] = (packed << 4).view(np.int8) >> 4
    codes[:, 1::2] = packed.view(np.int8) >> 4
    return codes
