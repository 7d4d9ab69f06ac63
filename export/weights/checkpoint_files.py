"""Files of head tensors: single, sharded or split by ranks. A pickle may hold tensors only."""

import json
import pickle
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from zipfile import is_zipfile

import torch
from safetensors import safe_open

from medusa_trt.errors import HeadsError
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
        tied: keys that a safetensors file left out because they are another key's tensor, with
            that key.
    """

    path: Path
    files: Mapping[str, tuple[Path, ...]]
    tied: Mapping[str, str] = field(default_factory=dict)
    _pickled: dict[Path, dict[str, torch.Tensor]] = field(default_factory=dict)

    def load(self, keys: Iterable[str]) -> dict[str, torch.Tensor]:
        """Loads tensors by their keys.

        Raises:
            HeadsError: a file is missing, damaged, or lacks keys that its index promises.
        """
        keys = list(keys)
        parts: dict[str, list[torch.Tensor]] = {key: [] for key in keys}
        for file in dict.fromkeys(file for key in keys for file in self.files[key]):
            stored = {key: self.tied.get(key, key) for key in keys if file in self.files[key]}
            tensors = self._load_tensors(file, list(stored.values()))
            for key, stored_key in stored.items():
                parts[key].append(tensors[stored_key])
        return {
            key: torch.cat(pieces) if len(pieces) > 1 else pieces[0]
            for key, pieces in parts.items()
        }

    def _load_tensors(self, file: Path, keys: list[str]) -> dict[str, torch.Tensor]:
        if not file.is_file():
            raise HeadsError(f"{self.path} lists a file that is not there: {file.name}")
        if file.suffix != ".safetensors" and file not in self._pickled:
            self._pickled[file] = _read_pickle(file)
        present = self._pickled[file].keys() if file in self._pickled else _read_keys(file)[0]
        if missing := set(keys) - set(present):
            raise HeadsError(f"{file} lacks keys that {self.path} lists: {join_names(missing)}")
        if file in self._pickled:
            return {key: self._pickled[file][key] for key in keys}
        try:
            with safe_open(file, "pt") as opened:
                return {key: opened.get_tensor(key) for key in keys}
        except Exception as error:  # The reader raises almost anything for a damaged file.
            raise _make_unreadable_error(file, error) from error


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
        return _open_index(path)
    if path.suffix != ".safetensors":
        tensors = _read_pickle(path)
        return Checkpoint(path, dict.fromkeys(tensors, (path,)), {}, {path: tensors})
    keys, tied = _read_keys(path)
    files: tuple[Path, ...] = (path,)
    if _RANK.fullmatch(path.name):
        ranks = {int(m[1]): f for f in path.parent.iterdir() if (m := _RANK.fullmatch(f.name))}
        files = tuple(ranks[rank] for rank in sorted(ranks))
    return Checkpoint(path, dict.fromkeys([*keys, *tied], files), tied)


def json_from_file(path: Path) -> dict[str, object]:
    """Reads a JSON file that holds an object.

    Raises:
        HeadsError: the file holds something else.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise HeadsError(f"{path} is not JSON: {_get_first_line(error)}") from error
    if not isinstance(content, dict):
        raise HeadsError(f"{path} is not a JSON object: it holds a {type(content).__name__}")
    return content


def _open_index(path: Path) -> Checkpoint:
    weight_map = json_from_file(path).get("weight_map")
    values = weight_map.values() if isinstance(weight_map, dict) else ()
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in values):
        raise HeadsError(f"{path} has no weight_map of file names: it is damaged")
    names = set(weight_map.values())
    if outside := [name for name in names if Path(name).name != name]:
        raise HeadsError(f"{path} points outside its folder: {join_names(outside)}")
    return Checkpoint(path, {key: (path.parent / name,) for key, name in weight_map.items()})


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


def _read_keys(file: Path) -> tuple[list[str], dict[str, str]]:
    """Reads the keys of a safetensors file, and which left-out key is tied to which key."""
    try:
        with safe_open(file, "pt") as opened:
            keys, metadata = list(opened.keys()), opened.metadata() or {}
    except Exception as error:  # The reader raises almost anything for a damaged file.
        raise _make_unreadable_error(file, error) from error
    return keys, {left: kept for left, kept in metadata.items() if kept in keys}


def _read_pickle(file: Path) -> dict[str, torch.Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # It warns of the pickle protocol of a file that it refuses.
            mapped = is_zipfile(file)  # An older pickle can only be read as a whole.
            loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        # The error's own text recommends to run the code in the file.
        raise HeadsError(
            f"cannot read heads from {file}: it is damaged, or holds more than tensors, which is "
            "not safe to load; save the tensors as .safetensors"
        ) from error
    except Exception as error:  # The reader raises almost anything for a damaged file.
        raise _make_unreadable_error(file, error) from error
    if not isinstance(loaded, dict) or not all(
        isinstance(key, str) and torch.is_tensor(value) for key, value in loaded.items()
    ):
        raise HeadsError(f"{file} does not hold a dictionary of tensors")
    return loaded


def _make_unreadable_error(file: Path, error: Exception) -> HeadsError:
    reason = f"{type(error).__name__}: {_get_first_line(error)}"
    return HeadsError(f"cannot read heads from {file}: {reason}")


def _get_first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]
