"""Reading head checkpoints: the tensors decide what the heads are, a config only cross-checks."""

import json
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file

from medusa_trt.errors import HeadsError
from medusa_trt.export.heads import Linear, MedusaHead, MedusaHeads

FILE_NAMES = ("medusa_lm_head.safetensors", "medusa_lm_head.pt")
_PREFIX = re.compile(r"^(?:base_model\.model\.)?medusa_heads?\.")
_INDEX = "(0|[1-9][0-9]{0,3})"
_KEY = re.compile(rf"{_INDEX}\.(({_INDEX}\.linear|projection)\.(weight|bias)|{_INDEX}\.weight)")
_TOKEN_MAP = "token_map"


def heads_from_path(path: Path) -> MedusaHeads:
    """Reads heads in the public FasterDecoding layout, with own or shared unembeddings.

    Keys: `{head}.{layer}.linear.weight` and `.bias`, `{head}.{num_layers}.weight` for an own
    unembedding; this project's extensions are `{head}.projection.weight` and `.bias`, and
    `token_map` for a truncated vocabulary.

    Args:
        path: a `.safetensors` or `.pt` file, or a folder that holds one by its public name.

    Raises:
        HeadsError: no such file, an unsafe or damaged one, or keys that are missing, unknown or
            misshapen.
    """
    file = _file_from_path(path)
    heads = heads_from_tensors(_tensors_from_file(file), str(file))
    _cross_check(heads, file.parent / "config.json")
    return heads


def heads_from_tensors(tensors: Mapping[str, torch.Tensor], source: str) -> MedusaHeads:
    """Builds the heads from named tensors; `source` names them in errors. See `heads_from_path`."""
    named: dict[str, torch.Tensor] = {}
    for key, tensor in tensors.items():
        name = _PREFIX.sub("", key)
        if name in named:
            raise HeadsError(f"{source} has {name} twice, with and without a prefix")
        named[name] = tensor.detach()
    token_map = named.pop(_TOKEN_MAP, None)
    if unknown := sorted(key for key in named if not _KEY.fullmatch(key)):
        raise HeadsError(f"{source} has keys that no head layout has: {_listed(unknown)}")
    for key, tensor in named.items():
        if not tensor.is_floating_point():
            raise HeadsError(f"{source}: {key} is {tensor.dtype}, expected floating point")
        named[key] = tensor.float()
    indices = {int(key.split(".")[0]) for key in named}
    if not indices or indices != set(range(len(indices))):
        raise HeadsError(f"{source} holds heads {sorted(indices)}: expected 0, 1, 2, ...")
    heads = tuple(_head(named, index, source) for index in range(len(indices)))
    for index, head in enumerate(heads):
        if _layout(head) != _layout(heads[0]):
            raise HeadsError(f"{source}: head {index} differs from head 0 in its keys or shapes")
    return MedusaHeads(heads, None if token_map is None else _checked_ids(token_map, source))


def _head(named: dict[str, torch.Tensor], index: int, source: str) -> MedusaHead:
    """Takes one head's tensors out of `named`."""
    first = named.get(f"{index}.0.linear.weight")
    if first is None:
        raise HeadsError(f"{source} lacks {index}.0.linear.weight")
    size = first.shape[0] if first.ndim else 1
    blocks: list[Linear] = []
    while f"{index}.{len(blocks)}.linear.weight" in named:
        blocks.append(_linear(named, f"{index}.{len(blocks)}.linear", size, source))
    projection = None
    if f"{index}.projection.weight" in named:
        projection = _linear(named, f"{index}.projection", size, source)
    unembedding = named.pop(f"{index}.{len(blocks)}.weight", None)
    if unembedding is not None and (unembedding.ndim != 2 or unembedding.shape[1] != size):
        raise HeadsError(
            f"{source}: {index}.{len(blocks)}.weight is {tuple(unembedding.shape)}, "
            f"expected (vocabulary, {size})"
        )
    if left := [key for key in named if key.startswith(f"{index}.")]:
        raise HeadsError(
            f"{source}: head {index} has {len(blocks)} whole layers, to which these keys do not "
            f"belong: {_listed(left)}"
        )
    return MedusaHead(tuple(blocks), projection, unembedding)


def _linear(named: dict[str, torch.Tensor], prefix: str, size: int, source: str) -> Linear:
    """Takes a square map's tensors out of `named`."""
    weight, bias = named.pop(f"{prefix}.weight"), named.pop(f"{prefix}.bias", None)
    for key, tensor, shape in (("weight", weight, (size, size)), ("bias", bias, (size,))):
        if tensor is not None and tuple(tensor.shape) != shape:
            raise HeadsError(f"{source}: {prefix}.{key} is {tuple(tensor.shape)}, expected {shape}")
    return Linear(weight, bias)


def _layout(head: MedusaHead) -> tuple[object, ...]:
    maps = [*head.blocks, *([head.projection] if head.projection else [])]
    return (
        len(head.blocks),
        [(map_.weight.shape, map_.bias is None) for map_ in maps],
        None if head.unembedding is None else head.unembedding.shape,
    )


def _checked_ids(token_map: torch.Tensor, source: str) -> torch.Tensor:
    dtype, shape = token_map.dtype, tuple(token_map.shape)
    is_integer = not (dtype.is_floating_point or dtype.is_complex or dtype == torch.bool)
    if not is_integer or len(shape) != 1 or shape[0] == 0:
        raise HeadsError(f"{source}: {_TOKEN_MAP} is {dtype} {shape}, expected (ids,) of integers")
    return token_map.long()


def _file_from_path(path: Path) -> Path:
    if path.is_file():
        return path
    for name in FILE_NAMES:
        if (path / name).is_file():
            return path / name
    if path.is_dir():
        raise HeadsError(f"{path} holds none of {', '.join(FILE_NAMES)}")
    raise HeadsError(f"no heads at {path}: give a .safetensors or .pt file, or its folder")


def _tensors_from_file(file: Path) -> dict[str, torch.Tensor]:
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on the pickle protocol of a file that it refuses
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # The error's own text recommends to run the code in the file.
        raise HeadsError(
            f"cannot read heads from {file}: it is damaged, or holds more than tensors, which is "
            "not safe to load; save the tensors as .safetensors"
        ) from error
    except Exception as error:  # a damaged file makes either reader raise almost anything
        reason = f"{type(error).__name__}: {_first_line(error)}"
        raise HeadsError(f"cannot read heads from {file}: {reason}") from error
    if not isinstance(loaded, dict) or not all(
        isinstance(key, str) and torch.is_tensor(value) for key, value in loaded.items()
    ):
        raise HeadsError(f"{file} does not hold a dictionary of tensors")
    return loaded


def _cross_check(heads: MedusaHeads, config_path: Path) -> None:
    """Warns where a config beside the tensors contradicts them; the tensors win."""
    if not config_path.is_file():
        return
    try:
        config = json.loads(config_path.read_text("utf-8"))
    except ValueError as error:
        raise HeadsError(f"{config_path} is not JSON: {_first_line(error)}") from error
    found = {"medusa_num_heads": heads.num_heads, "medusa_num_layers": heads.num_layers}
    wrong = [
        f"{key} {config[key]} where the tensors have {value}"
        for key, value in found.items()
        if isinstance(config, dict) and config.get(key, value) != value
    ]
    if wrong:
        warnings.warn(f"{config_path} says {' and '.join(wrong)}: using the tensors", stacklevel=3)


def _listed(keys: Mapping[str, object] | list[str]) -> str:
    shown = sorted(keys)
    return ", ".join(shown[:5]) + (f" and {len(shown) - 5} more" if len(shown) > 5 else "")


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]
