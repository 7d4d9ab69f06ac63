"""Files of head tensors: single, sharded or split by ranks."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from medusa_trt.errors import HeadsError
from medusa_trt.export.weights.tensor_source import map_tensors, read_weight_map
from medusa_trt.files import join_names

FILE_NAMES = (
    "medusa_lm_head.safetensors",
    "medusa_lm_head.pt",
    "adapter_model.safetensors",
    "adapter_model.bin",
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "rank0.safetensors",
)
"""Files in which a folder keeps its tensors; the first one that exists is taken."""

_INDEX_SUFFIX = ".index.json"
_RANK = re.compile(r"rank(\d+)\.safetensors")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The tensors of a checkpoint, which are loaded on demand.

    Attributes:
        path: the file to name in errors.
        files: the files of each key, in the checkpoint's order; several hold a tensor's rows in
            turn (TensorRT-LLM's ranks).
    """

    path: Path
    files: Mapping[str, tuple[Path, ...]]

    def load(self, keys: Iterable[str]) -> dict[str, torch.Tensor]:
        """Loads tensors by their keys.

        Raises:
            HeadsError: a file is missing, damaged, or lacks keys that its index promises.
        """
        keys = list(keys)
        parts: dict[str, list[torch.Tensor]] = {key: [] for key in keys}
        for file in dict.fromkeys(file for key in keys for file in self.files[key]):
            if not file.is_file():
                raise HeadsError(f"{self.path} lists a file that is not there: {file.name}")
            tensors = map_tensors(file, error_class=HeadsError)
            wanted = [key for key in keys if file in self.files[key]]
            if missing := set(wanted) - tensors.keys():
                raise HeadsError(f"{file} lacks keys that {self.path} lists: {join_names(missing)}")
            for key in wanted:
                parts[key].append(tensors[key])
        return {
            key: torch.cat(pieces) if len(pieces) > 1 else pieces[0]
            for key, pieces in parts.items()
        }


def open_checkpoint(path: Path) -> Checkpoint:
    """Opens a checkpoint and reads its keys.

    Args:
        path: a `.safetensors`, `.pt` or `.bin` file, the `.index.json` of a sharded one, or a
            folder that holds one by its public name, or a single one by any name.

    Raises:
        HeadsError: no such file, a damaged one, or a pickle with more than tensors in it.
    """
    path = _find_file(path)
    if path.name.endswith(_INDEX_SUFFIX):
        weight_map = read_weight_map(path, HeadsError)
        return Checkpoint(path, {key: (path.parent / name,) for key, name in weight_map.items()})
    files: tuple[Path, ...] = (path,)
    if _RANK.fullmatch(path.name):
        ranks = {int(m[1]): f for f in path.parent.iterdir() if (m := _RANK.fullmatch(f.name))}
        files = tuple(ranks[rank] for rank in sorted(ranks))
    return Checkpoint(path, dict.fromkeys(map_tensors(path, error_class=HeadsError), files))


def json_from_file(path: Path) -> dict[str, object]:
    """Reads a JSON file that holds an object.

    Raises:
        HeadsError: the file holds something else.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise HeadsError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise HeadsError(f"{path} is not a JSON object: it holds a {type(content).__name__}")
    return content


def _find_file(path: Path) -> Path:
    if path.is_file():
        return path
    for name in FILE_NAMES:
        if (path / name).is_file():
            return path / name
    if not path.is_dir():
        raise HeadsError(
            f"no heads at {path}: give a .safetensors or .pt file, its folder, or a hub id like "
            "owner/name"
        )
    files = sorted(file for file in path.iterdir() if file.suffix in (".safetensors", ".pt"))
    if len(files) == 1:
        return files[0]
    several = f", and several files: {join_names(file.name for file in files)}" if files else ""
    raise HeadsError(f"{path} holds none of {', '.join(FILE_NAMES)}{several}")
