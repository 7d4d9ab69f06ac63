"""`medusa-export` and `medusa-trt export`: a model and its heads become a bundle."""

from medusa_trt.cli.parser import Verb
from medusa_trt.cli.terminal import make_stage_printer
from medusa_trt.errors import require_extra
from medusa_trt.export.options import ExportOptions


def export(options: ExportOptions) -> None:
    """Exports, and shows each stage."""
    show_stage = make_stage_printer()
    show_stage("starting")
    with require_extra("exporting", "export"):
        from medusa_trt.export.pipeline import export_bundle
    bundle = export_bundle(options, show_stage)
    size_bytes = sum(spec.size_bytes for spec in bundle.manifest.files.values())
    show_stage(f"wrote {bundle.path} ({size_bytes / 1e6:.0f} MB)")


VERBS = {"export": Verb(ExportOptions, export)}
