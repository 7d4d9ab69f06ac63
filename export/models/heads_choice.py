"""Which heads an export uses, and what they mean for its backbone."""

from dataclasses import dataclass, replace
from pathlib import Path

from medusa_trt.errors import ExportError, HeadsError
from medusa_trt.export.heads.loading import LoadedHeads, holds_heads, load_heads
from medusa_trt.export.models.source import ModelSource
from medusa_trt.export.options import NO_HEADS
from medusa_trt.runtime.hub import is_hub_id


@dataclass(frozen=True, slots=True)
class HeadsChoice:
    """The model and the heads that an export uses.

    Attributes:
        source: the model to load, with the adapter that belongs to the heads.
        loaded: the heads; None for a bundle without heads.
        warnings: sentences to print to the user.
    """

    source: ModelSource
    loaded: LoadedHeads | None
    warnings: tuple[str, ...]


def choose_heads(source: ModelSource, wanted: str | Path | None) -> HeadsChoice:
    """Reads the heads of an export.

    By default they are the alias's, the adapter's, or those that a merged checkpoint holds beside
    its backbone. An adapter's LoRA belongs to the backbone that its heads draft for, so heads out
    of an adapter bring it along. Heads out of a merged checkpoint on another backbone are allowed
    with a warning: they draft worse, which changes speed and never the reply. Where no heads are
    known, there are none.

    Args:
        source: the model that was asked for.
        wanted: the heads that were asked for; `NO_HEADS` for none, None for the default.

    Raises:
        HeadsError: the heads cannot be read.
        ExportError: the backbone beside the heads is quantized, or cannot be downloaded.
    """
    place = wanted if wanted is not None else _find_heads(source)
    if place is None or str(place) == NO_HEADS:
        return HeadsChoice(source, None, ())
    loaded = load_heads(place, read_all=False)
    if loaded.adapter is not None:
        if source.adapter is not None and source.adapter.resolve() != loaded.adapter.resolve():
            raise HeadsError(
                f"--model and --heads are two adapters, {source.adapter} and {loaded.adapter}: "
                "give the base model with --model"
            )
        source = replace(source, adapter=loaded.adapter)
    warnings = loaded.warnings
    if loaded.backbone is not None:
        is_beside = wanted is None or str(wanted) == source.location
        if not is_beside and Path(source.location).resolve() != loaded.backbone.resolve():
            warnings += (
                f"the heads were trained with the backbone beside them in {loaded.backbone}; on "
                f"{source.name} they may draft badly: --model {loaded.backbone} uses both",
            )
        elif loaded.has_quantized_backbone:
            raise ExportError(
                f"the backbone in {loaded.backbone} is quantized with scales: give the "
                "full-precision model with --model and these heads with --heads"
            )
    return HeadsChoice(source, loaded, warnings)


def _find_heads(source: ModelSource) -> str | Path | None:
    """Finds the heads that belong to a model; None if none are known."""
    if source.alias is not None and (place := source.alias.heads_source) is not None:
        return place
    if source.adapter is not None and holds_heads(source.adapter):
        return source.adapter
    is_folder = source.gguf_file is None and Path(source.location).is_dir()
    if (is_folder or is_hub_id(source.location)) and holds_heads(source.location):
        return source.location
    return None
