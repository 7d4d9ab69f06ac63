"""The whole export, from a model and heads to a bundle that was compared with the model."""

import gc
from collections.abc import Callable
from pathlib import Path

import msgspec

from medusa_trt.errors import ExportError
from medusa_trt.export.bundle_writing import write_bundle
from medusa_trt.export.comparison.check import compare_bundle, describe_agreement
from medusa_trt.export.manifest import write_manifest
from medusa_trt.export.models.base_model import BaseModel
from medusa_trt.export.options import ExportOptions
from medusa_trt.export.preparation import parts_from_options
from medusa_trt.files import check_output, check_space, new_folder
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.tensors import MANIFEST_FILE

__all__ = ["ExportOptions", "export_bundle"]


def export_bundle(options: ExportOptions, progress: Callable[[str], None] = print) -> Bundle:
    """Exports a model with its heads; the bundle is written completely or not at all.

    Args:
        options: what to export.
        progress: told each stage as it begins.

    Raises:
        ExportError: the model is unknown or not supported, the output cannot be written, or the
            bundle differs from the model.
        HeadsError: the heads are damaged or do not fit.
        TreeError: the tree is malformed or deeper than the heads.
    """
    parts = parts_from_options(options, progress)
    output = options.output or Path(parts.base.source.name)
    check_output(output, options.overwrite, MANIFEST_FILE)
    check_space(output, parts.size_bytes + parts.scratch_bytes)
    base, is_compared = parts.base, parts.compared
    with new_folder(output, options.overwrite) as folder:
        write_bundle(folder, parts, progress)
        del parts  # Frees the heads.
        gc.collect()  # Frees the traced graphs, which refer to themselves: 0.13 GiB for 9 layers.
        if is_compared:
            _compare(folder, base, progress)
        else:
            progress("not compared with the model: its weights are random")
    return Bundle.open(output, check_hashes=False)


def _compare(folder: Path, base: BaseModel, progress: Callable[[str], None]) -> None:
    """Compares a bundle with its model and adds the result to the manifest."""
    progress("comparing the bundle with the model")
    bundle = Bundle.open(folder, check_hashes=False)
    try:
        verified = compare_bundle(bundle, base, scratch=folder)
    except ExportError as error:
        raise ExportError(f"{error}; no bundle was written") from error
    for where, result in verified.items():
        progress(f"  {describe_agreement(where, result)}")
    write_manifest(folder, msgspec.structs.replace(bundle.manifest, verified=verified))
