"""Reading head checkpoints: the tensors decide what the heads are, a config only cross-checks."""

import json
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from medusa_trt.errors import HeadsError
from medusa_trt.export.heads import Linear, MedusaHead, MedusaHeads

FILE_NAMES = ("medusa_lm_head.safetensors", "medusa_lm_head.pt")
_PREFIX = re.compile(r"^(?:base_model\.model\.)?medusa_heads?\.")
_BLOCK = re.compile(r"^(\d+)\.(\d+)\.linear\.(weight|bias)$")
_UNEMBEDDING = re.compile(r"^(\d+)\.(\d+)\.weight$")
_PROJECTION = re.compile(r"^(\d+)\.projection\.(weight|bias)$")
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
    named = {_PREFIX.sub("", key): tensor.float() for key, tensor in tensors.items()}
    token_map = named.pop(_TOKEN_MAP, None)
    known = [key for key in named if _kind(key)]
    if unknown := sorted(set(named) - set(known)):
        raise HeadsError(f"{source} has keys that no head layout has: {_listed(unknown)}")
    indices = {int(key.split(".")[0]) for key in known}
    if not indices or indices != set(range(len(indices))):
        raise HeadsError(f"{source} holds heads {sorted(indices)}: expected 0, 1, 2, ...")
    heads = tuple(_head(named, index, source) for index in range(len(indices)))
    if named:
        raise HeadsError(f"{source} has keys that do not belong together: {_listed(named)}")
    if len({_layout(head) for head in heads}) > 1:
        raise HeadsError(f"{source}: the heads differ in their layers or shapes")
    return MedusaHeads(heads, None if token_map is None else _checked_token_map(token_map, source))


def _checked_token_map(token_map: torch.Tensor, source: str) -> torch.Tensor:
    ids = token_map.long()
    whole = bool((ids == token_map).all())
    if ids.ndim != 1 or not len(ids) or not whole or ids.min() < 0 or len(ids.unique()) < len(ids):
        raise HeadsError(f"{source}: token_map is not a list of different token ids")
    return ids


def _kind(key: str) -> re.Match[str] | None:
    return _BLOCK.match(key) or _UNEMBEDDING.match(key) or _PROJECTION.match(key)


def _head(named: dict[str, torch.Tensor], index: int, source: str) -> MedusaHead:
    """Takes one head's tensors out of `named`."""
    blocks: list[Linear] = []
    while f"{index}.{len(blocks)}.linear.weight" in named:
        blocks.append(_linear(named, f"{index}.{len(blocks)}.linear"))
    if not blocks:
        raise HeadsError(f"{source} lacks {index}.0.linear.weight")
    size = blocks[0].weight.shape[-1]
    projection = None
    if f"{index}.projection.weight" in named:
        projection = _linear(named, f"{index}.projection")
    for map_ in (*blocks, *([projection] if projection else [])):
        bias_shape = (size,) if map_.bias is None else tuple(map_.bias.shape)
        if tuple(map_.weight.shape) != (size, size) or bias_shape != (size,):
            raise HeadsError(
                f"{source}: head {index} has a weight {tuple(map_.weight.shape)} with a bias "
                f"{bias_shape}, expected ({size}, {size}) and ({size},)"
            )
    unembedding = named.pop(f"{index}.{len(blocks)}.weight", None)
    if unembedding is not None and (unembedding.ndim != 2 or unembedding.shape[1] != size):
        raise HeadsError(
            f"{source}: {index}.{len(blocks)}.weight is {tuple(unembedding.shape)}, "
            f"expected (vocabulary, {size})"
        )
    return MedusaHead(tuple(blocks), projection, unembedding)


def _linear(named: dict[str, torch.Tensor], prefix: str) -> Linear:
    return Linear(named.pop(f"{prefix}.weight"), named.pop(f"{prefix}.bias", None))


def _layout(head: MedusaHead) -> tuple[object, ...]:
    unembedding = None if head.unembedding is None else tuple(head.unembedding.shape)
    size = tuple(head.blocks[0].weight.shape)
    return len(head.blocks), size, head.projection is None, unembedding


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
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, OSError, EOFError, RuntimeError) as error:
        raise HeadsError(f"cannot read heads from {file}: {_first_line(error)}") from error
    if not isinstance(loaded, dict) or not all(map(torch.is_tensor, loaded.values())):
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
