"""The whole export, from a model and heads to a bundle that was compared with the model."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from medusa_trt.errors import ExportError
from medusa_trt.export.bundle_writing import write_bundle
from medusa_trt.export.comparison.check import compare_bundle, describe_agreement
from medusa_trt.export.options import ExportOptions
from medusa_trt.export.preparation import ExportParts, parts_from_options
from medusa_trt.files import check_output, check_space, make_folder
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.manifest import Agreement
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
    with make_folder(output, options.overwrite) as folder:
        if not parts.compared:
            progress("not compared with the model: its weights are random")
        write_bundle(folder, parts, progress, partial(_compare, parts, progress))
    return Bundle.open(output, check_hashes=False)


def _compare(
    parts: ExportParts, progress: Callable[[str], None], bundle: Bundle, batch_sizes: Sequence[int]
) -> dict[str, Agreement]:
    """Compares a bundle with its model, if that has weights worth it."""
    if not parts.compared:
        return {}
    progress("comparing with the model")
    try:
        verified = compare_bundle(bundle, parts.base, bundle.path, batch_sizes)
    except ExportError as error:
        raise ExportError(f"{error}; no bundle was written") from error
    for where, result in verified.items():
        progress(f"  {describe_agreement(where, result)}")
    return verified
