"""Loading heads from a file, a folder, a hub id, a merged checkpoint or a PEFT adapter."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from warnings import warn

import torch

from medusa_trt.errors import HeadsError, MedusaWarning
from medusa_trt.export.heads.assembly import find_equal_layers, heads_from_keys
from medusa_trt.export.heads.config_check import find_contradiction
from medusa_trt.export.heads.facts import facts_from_heads, replace_unembeddings
from medusa_trt.export.heads.formats import HeadsFacts
from medusa_trt.export.heads.key_layouts import (
    TENSORRT_LLM,
    UNEMBEDDINGS,
    VLLM,
    HeadKey,
    Recognized,
    is_head_key,
    recognize,
)
from medusa_trt.export.heads.medusa_heads import MedusaHeads
from medusa_trt.export.heads.unread import find_unread_matrices, group_matrices
from medusa_trt.export.weights.checkpoint_files import (
    FILE_NAMES,
    Checkpoint,
    json_from_file,
    open_checkpoint,
)
from medusa_trt.export.weights.hub import folder_from_hub
from medusa_trt.runtime.hub import is_hub_id

ADAPTER_CONFIG = "adapter_config.json"

_INDEX_PATTERN = "*.index.json"
_ANY_TENSORS = ("*.safetensors", "*.pt")
_SCALE_SUFFIXES = (".weight_scale", ".weights_scaling_factor")


@dataclass(frozen=True, slots=True)
class LoadedHeads:
    """Heads, and what is known of the file that they come from.

    Attributes:
        heads: the heads, as float32.
        path: the file that was read.
        format: name of its format, a row of `FORMATS`.
        facts: what a config would state about the heads.
        dtype: data type of most of their weights in the file.
        num_parameters: number of the heads' weights; an unembedding that they share counts once.
        warnings: sentences that tell the user what differs from the usual case.
        backbone: the folder of a whole model that they were found in, or None.
        adapter: the folder of the PEFT adapter that they were found in, or None.
        others: keys of that model or adapter.
    """

    heads: MedusaHeads
    path: Path
    format: str
    facts: HeadsFacts
    dtype: torch.dtype
    num_parameters: int
    warnings: tuple[str, ...]
    backbone: Path | None
    adapter: Path | None
    others: tuple[str, ...]

    @property
    def has_quantized_backbone(self) -> bool:
        """Whether the model beside the heads has quantized weights with scales."""
        return any(key.endswith(_SCALE_SUFFIXES) for key in self.others)


def load_heads(source: str | Path, *, read_all: bool = True) -> LoadedHeads:
    """Reads heads in any public layout; the tensors decide, a config only cross-checks.

    Args:
        source: a tensor file, an `.index.json`, a folder or a hub id.
        read_all: whether the matrices are read too; see `MedusaHeads.unread`.

    Raises:
        HeadsError: nothing there, an unsafe or damaged file, or keys that are missing, unknown,
            or misshapen; the error lists them.
        ExportError: a hub id that cannot be downloaded.
    """
    checkpoint = open_checkpoint(_find_local_path(source))
    name = str(checkpoint.path)
    recognized = recognize(checkpoint.files, name)
    if not any(key.part == "block" for key in recognized.names) and recognized.others:
        raise HeadsError(
            f"{name} holds no Medusa heads, only {len(recognized.others)} tensors of a model"
        )
    is_adapter = _is_adapter(checkpoint, recognized)
    config_path = checkpoint.path.parent / (ADAPTER_CONFIG if is_adapter else "config.json")
    config = json_from_file(config_path) if config_path.is_file() else {}
    warnings: tuple[str, ...] = ()
    if recognized.layout is VLLM:
        recognized, warnings = _read_as_vllm(recognized, checkpoint, config, config_path)
    by_name = checkpoint.load(recognized.names.values())
    tensors = {key: by_name[file_key] for key, file_key in recognized.names.items()}
    unread = {} if read_all else find_unread_matrices(checkpoint, recognized, tensors)
    heads = heads_from_keys(recognized, tensors, name, unread)
    heads = replace(heads, unread=group_matrices(unread))
    if recognized.layout is VLLM:
        heads = _apply_vllm_config(heads, config, config_path)
    loaded = _describe(checkpoint, recognized, tensors, heads, config, config_path)
    return replace(loaded, warnings=(*warnings, *loaded.warnings))


def heads_from_path(path: Path) -> MedusaHeads:
    """Reads heads as `load_heads` does, and warns of what a user should know."""
    loaded = load_heads(path)
    for text in loaded.warnings:
        warn(text, MedusaWarning, stacklevel=2)
    return loaded.heads


def holds_heads(source: str | Path) -> bool:
    """Checks by its keys whether a folder or hub repository holds heads in some layout.

    Raises:
        HeadsError: its files are damaged.
        ExportError: a hub id that cannot be downloaded.
    """
    folder = Path(source)
    if is_hub_id(str(source)):
        folder = folder_from_hub(str(source), ["*.json"])
        if (folder / ADAPTER_CONFIG).is_file():
            return True
        if (folder / "config.json").is_file():
            stated = json_from_file(folder / "config.json")
            if any("medusa" in str(key) for key in stated):
                return True
        indices = sorted(folder.glob(_INDEX_PATTERN))
        return any(is_head_key(key) for index in indices for key in open_checkpoint(index).files)
    if not any((folder / name).is_file() for name in FILE_NAMES):
        return False
    return any(is_head_key(key) for key in open_checkpoint(folder).files)


def _find_local_path(source: str | Path) -> Path:
    """Gives the path itself, or the folder into which files of a repository were downloaded."""
    if not is_hub_id(str(source)):
        return Path(source)
    folder = folder_from_hub(str(source), ["*.json"])
    shards = {
        file.name
        for index in sorted(folder.glob(_INDEX_PATTERN))
        for key, files in open_checkpoint(index).files.items()
        if is_head_key(key)
        for file in files
    }
    folder = folder_from_hub(str(source), sorted(shards) or [*FILE_NAMES, "rank*.safetensors"])
    if not any((folder / name).is_file() for name in FILE_NAMES):
        folder = folder_from_hub(str(source), _ANY_TENSORS)
    return folder


def _is_adapter(checkpoint: Checkpoint, recognized: Recognized) -> bool:
    return checkpoint.path.name.startswith("adapter_model.") or recognized.prefix.startswith(
        "base_model.model."
    )


def _read_as_vllm(
    recognized: Recognized, checkpoint: Checkpoint, config: Mapping[str, object], path: Path
) -> tuple[Recognized, tuple[str, ...]]:
    """Chooses the tensors that vLLM uses; returns a sentence for each kind that it ignores.

    With `original_lm_head` all heads use the unembedding of head 0, whatever else is stored. The
    token map counts only with a `truncated_vocab_size` below `vocab_size`
    (vllm/model_executor/models/medusa.py).
    """
    names, warnings = dict(recognized.names), []
    first = HeadKey("unembedding", "weight", 0)
    others = [key for key in names if key.part == "unembedding" and key != first]
    if config.get("original_lm_head") is True and first in names:
        names[HeadKey("common_unembedding")] = names.pop(first)
        for key in others:
            del names[key]
        if others:
            warnings.append(
                f"{path} says original_lm_head: all heads use the unembedding of head 0, as in vLLM"
            )
    token_map = HeadKey("token_map")
    truncated, size = config.get("truncated_vocab_size"), config.get("vocab_size")
    if token_map in names and truncated in (None, size):
        unembeddings = [name for key, name in names.items() if key.part in UNEMBEDDINGS]
        shapes = checkpoint.load([names[token_map], *unembeddings[:1]])
        if any(len(shapes[name]) > len(shapes[names[token_map]]) for name in unembeddings[:1]):
            del names[token_map]
            warnings.append(
                f"{path} has no truncated_vocab_size below vocab_size, so the token map is not "
                "used, as in vLLM"
            )
    return replace(recognized, names=names), tuple(warnings)


def _apply_vllm_config(heads: MedusaHeads, config: Mapping[str, object], path: Path) -> MedusaHeads:
    """Cuts full unembeddings to the token map and scales logits, as vLLM does."""
    scale = config.get("logit_scale", 1.0)
    if not isinstance(scale, int | float) or not scale > 0:
        raise HeadsError(f"{path} has logit_scale {scale!r}: expected a number above 0")
    token_map = heads.token_map

    def convert(unembedding: torch.Tensor) -> torch.Tensor:
        if token_map is not None and unembedding.shape[0] > token_map.numel():
            if not 0 <= int(token_map.min()) <= int(token_map.max()) < unembedding.shape[0]:
                raise HeadsError(f"{path.parent}: token_map names rows that lm_head does not have")
            unembedding = unembedding[token_map]
        return unembedding if scale == 1 else unembedding * scale

    return replace_unembeddings(heads, convert)


def _describe(
    checkpoint: Checkpoint,
    recognized: Recognized,
    tensors: Mapping[HeadKey, torch.Tensor],
    heads: MedusaHeads,
    config: Mapping[str, object],
    config_path: Path,
) -> LoadedHeads:
    vocab_size, base_model = config.get("vocab_size"), config.get("base_model_name_or_path")
    facts = facts_from_heads(
        heads,
        vocab_size if isinstance(vocab_size, int) else None,
        base_model if isinstance(base_model, str) and base_model else None,
    )
    contradiction = find_contradiction(config, facts, config_path)
    weights = {key: tensor for key, tensor in tensors.items() if key.kind in ("weight", "bias")}
    counts = Counter[torch.dtype]()
    for key, tensor in weights.items():
        counts[tensor.dtype] += tensor.numel() if key.part != "token_map" else 0
    is_adapter = _is_adapter(checkpoint, recognized)
    is_merged = bool(recognized.others) and not is_adapter and recognized.layout != TENSORRT_LLM
    folder = checkpoint.path.parent
    return LoadedHeads(
        heads=heads,
        path=checkpoint.path,
        format=_find_format(checkpoint, recognized, facts, config),
        facts=facts,
        dtype=counts.most_common(1)[0][0],
        num_parameters=counts.total(),
        warnings=(*([contradiction] if contradiction else []), *find_equal_layers(tensors)),
        backbone=folder if is_merged else None,
        adapter=folder if is_adapter else None,
        others=recognized.others,
    )


def _find_format(
    checkpoint: Checkpoint,
    recognized: Recognized,
    facts: HeadsFacts,
    config: Mapping[str, object],
) -> str:
    """Finds the row of `FORMATS` that has these names, this file and this config."""
    if recognized.layout in (VLLM, TENSORRT_LLM):
        return recognized.layout.name
    if _is_adapter(checkpoint, recognized):
        return "peft"
    if recognized.prefix:
        is_modelopt = recognized.prefix == "medusa_heads."
        whole = "fasterdecoding-merged" if recognized.others else "mlc"
        return "modelopt" if is_modelopt else whole
    if facts.has_projection or facts.has_root_map or facts.has_token_map:
        return "medusa-trt"
    if "medusa_config" in config:
        return "rtp-llm"
    if facts.unembedding == "shared":
        return "shared"
    return "tgi-v1" if checkpoint.path.suffix == ".safetensors" else "fasterdecoding"
