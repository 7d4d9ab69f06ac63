"""Writing heads in any format: a folder that appears whole or not at all."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from medusa_trt.errors import HeadsError
from medusa_trt.export.head_conversion.backbone import Backbone
from medusa_trt.export.head_conversion.fitting import fit_heads
from medusa_trt.export.head_conversion.options import ConvertOptions
from medusa_trt.export.heads.facts import facts_from_heads
from medusa_trt.export.heads.formats import HeadFormat, HeadsFacts, format_from_name
from medusa_trt.export.heads.key_layouts import HeadKey
from medusa_trt.export.heads.loading import LoadedHeads, load_heads
from medusa_trt.export.heads.medusa_heads import MedusaHeads
from medusa_trt.export.models.source import source_from_name
from medusa_trt.files import check_writable, make_folder

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
"""Types that heads can be written in."""

_INDEX_FILE = "model.safetensors.index.json"


def convert_heads(options: ConvertOptions, progress: Callable[[str], None] = print) -> LoadedHeads:
    """Converts heads from any format into any that can hold them.

    Args:
        options: what to convert.
        progress: told each stage, and what the user should know.

    Returns:
        What was read.

    Raises:
        HeadsError: the source cannot be read, the format cannot hold it, or the output is in the
            way.
        ExportError: the backbone cannot be loaded, or the output cannot be written.
    """
    row = format_from_name(options.to)
    if options.dtype is not None and options.dtype not in DTYPES:
        raise HeadsError(f"unknown type {options.dtype!r}: give one of {', '.join(DTYPES)}")
    if options.output.exists() and not options.overwrite:
        raise HeadsError(f"{options.output} exists: give another --output, or --overwrite")
    check_writable(options.output, HeadsError, is_folder=True)
    progress(f"reading {options.source}")
    loaded = load_heads(options.source)
    for text in loaded.warnings:
        progress(f"warning: {text}")
    if loaded.path.parent.resolve() == options.output.resolve():
        raise HeadsError(f"{options.output} is the source: give another --output")
    backbone = _find_backbone(options.model, loaded, row)
    if loaded.backbone is not None and row.backbone != "weights":
        progress(
            f"warning: the backbone beside the heads in {loaded.backbone} stays behind: use the "
            "heads with it alone"
        )
    stored = next((name for name, dtype in DTYPES.items() if dtype == loaded.dtype), "float32")
    dtype = DTYPES[options.dtype or stored]
    progress(f"writing {options.output} in {row.name} format")
    save_heads(loaded.heads, row, options.output, backbone, dtype, loaded.facts, options.overwrite)
    return loaded


def save_heads(
    heads: MedusaHeads,
    row: HeadFormat,
    output: Path,
    backbone: Backbone | None,
    dtype: torch.dtype,
    stated: HeadsFacts | None = None,
    overwrite: bool = False,
) -> None:
    """Writes heads as a folder.

    Args:
        heads: what to write.
        row: the format.
        output: the folder, which appears at the end.
        backbone: the backbone, if it is known; see `HeadFormat.backbone`.
        dtype: type of the weights in the file.
        stated: facts of the source, for what the heads do not tell: the backbone's name and
            vocabulary.
        overwrite: replace a folder that holds nothing but such files.

    Raises:
        HeadsError: the format cannot hold the heads, or needs the backbone.
        ExportError: the folder cannot be written.
    """
    heads = fit_heads(heads, row, backbone)
    facts = _collect_facts(heads, row, backbone, stated)
    tensors = name_tensors(heads, row, dtype)
    with make_folder(output, overwrite) as folder:
        weight_map: dict[str, str] = {}
        config: dict[str, object] = {}
        if row.backbone == "weights":
            assert backbone is not None  # see `_find_backbone`
            weight_map = backbone.save(folder)
            config = json.loads((folder / row.config_file).read_text("utf-8"))
        elif row.backbone == "config":
            assert backbone is not None
            config = json.loads(backbone.config.to_json_string(use_diff=False))
        if row.file.endswith(".pt"):
            torch.save(tensors, folder / row.file)
        else:
            save_file(tensors, folder / row.file, {"format": "pt"})
        stated_keys = {key: value for key, value in row.config(facts).items() if value is not None}
        _write_json(folder / row.config_file, config | stated_keys)
        if weight_map:
            weight_map |= dict.fromkeys(tensors, row.file)
            _write_json(folder / _INDEX_FILE, {"metadata": {}, "weight_map": weight_map})
        _refuse_to_delete(output, folder)


def _find_backbone(model: str | None, loaded: LoadedHeads, row: HeadFormat) -> Backbone | None:
    """Finds the backbone that was named, or else the one that the heads come with."""
    source = None if model is None else source_from_name(model)
    name = model
    has_lora = loaded.adapter is not None and bool(loaded.others)
    if has_lora and row.backbone != "weights":
        raise HeadsError(
            f"{row.name} cannot hold the LoRA weights beside the heads in {loaded.adapter}: "
            "convert --to fasterdecoding-merged or modelopt, which hold the whole model"
        )
    if source is None and loaded.backbone is not None:
        source, name = source_from_name(str(loaded.backbone)), str(loaded.backbone)
    elif source is None and loaded.adapter is not None and row.backbone is not None:
        source, name = source_from_name(str(loaded.adapter)), loaded.facts.base_model
    if source is not None and has_lora:
        source = replace(source, adapter=loaded.adapter)
    if source is None and row.backbone is not None:
        model_part = "the whole model" if row.backbone == "weights" else "the model's config"
        raise HeadsError(f"{row.name} needs {model_part} too: give it with --model")
    if source is None:
        return None
    if loaded.has_quantized_backbone and Path(source.location) == loaded.backbone:
        raise HeadsError(
            f"the backbone in {loaded.backbone} is quantized with scales: give the full-precision "
            "model with --model"
        )
    return Backbone(source, name or source.name)


def _collect_facts(
    heads: MedusaHeads, row: HeadFormat, backbone: Backbone | None, stated: HeadsFacts | None
) -> HeadsFacts:
    base_model = backbone.name if backbone else stated.base_model if stated else None
    facts = facts_from_heads(heads, stated.vocab_size if stated else None, base_model)
    if backbone is not None and (row.backbone or facts.vocab_size is None):
        vocab_size = backbone.config.vocab_size
        heads.check_fits(backbone.config.hidden_size, vocab_size)
        facts = replace(facts, vocab_size=vocab_size)
    if row.needs_base_model and facts.base_model is None:
        raise HeadsError(
            f"the config of {row.name} names the backbone, and nothing here does: give --model"
        )
    if facts.vocab_size is None and "vocab_size" in row.config(facts):
        raise HeadsError(
            f"the config of {row.name} states the backbone's vocabulary, and nothing here does: "
            "give --model"
        )
    return facts


def name_tensors(
    heads: MedusaHeads, row: HeadFormat, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Names the tensors as the format does, each as a copy."""
    named: dict[HeadKey, torch.Tensor] = {}
    common = None
    if "common" in row.unembeddings and heads.num_heads > 1:
        common = heads.common_unembedding
    for index, head in enumerate(heads.heads):
        maps = [
            (HeadKey("block", "weight", index, layer), block)
            for layer, block in enumerate(head.blocks)
        ]
        if head.projection is not None:
            maps.append((HeadKey("projection", "weight", index), head.projection))
        if head.root_map is not None:
            maps.append((HeadKey("root_map", "weight", index), head.root_map))
        for key, map_ in maps:
            named[key] = map_.weight
            if map_.bias is not None:
                named[key._replace(kind="bias")] = map_.bias
        if head.unembedding is not None and common is None:
            named[HeadKey("unembedding", "weight", index, len(head.blocks))] = head.unembedding
    if common is not None:
        named[HeadKey("common_unembedding")] = common
    tensors = {}
    for key, tensor in named.items():
        name = row.prefix + row.layout.make_key(key)
        tensors[name] = tensor.to(dtype, copy=True).contiguous()
        if not torch.isfinite(tensors[name]).all():
            raise HeadsError(f"{name} has values too large for {dtype}: give another --dtype")
    if heads.token_map is not None:
        tensors[row.prefix + row.layout.make_key(HeadKey("token_map"))] = heads.token_map.clone()
    return tensors


def _write_json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def _refuse_to_delete(output: Path, folder: Path) -> None:
    """Refuses to replace a folder that holds more than what was written anew."""
    if not output.exists():
        return
    others = {path.name for path in output.iterdir()} - {path.name for path in folder.iterdir()}
    if others:
        raise HeadsError(
            f"{output} holds other files ({', '.join(sorted(others)[:3])}), so it is not "
            "overwritten: give another --output"
        )
