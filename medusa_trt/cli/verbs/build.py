"""`medusa-trt build`: TensorRT engines from a bundle."""

from dataclasses import dataclass, field

from medusa_trt.cli.arguments import FolderArguments
from medusa_trt.cli.parser import Verb
from medusa_trt.cli.terminal import make_stage_printer
from medusa_trt.errors import require_extra
from medusa_trt.export.tensorrt.options import BuildOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildArguments(FolderArguments):
    """Build TensorRT engines from the graphs of a bundle, on the machine that will run them.

    Attributes:
        engines: what engines are built.
    """

    engines: BuildOptions = field(default_factory=BuildOptions)


def build(arguments: BuildArguments) -> None:
    """Builds engines, and shows each stage."""
    show_stage = make_stage_printer()
    show_stage("opening the bundle")
    with require_extra("building", "tensorrt", "tensorrt-rtx"):
        from medusa_trt.export.tensorrt.build import build_engines
    from medusa_trt.runtime.bundle import Bundle

    folder = build_engines(Bundle.open(arguments.bundle), arguments.engines, show_stage)
    size_bytes = sum(file.stat().st_size for file in folder.iterdir())
    show_stage(f"wrote {folder} ({size_bytes / 1e6:.0f} MB)")


VERBS = {"build": Verb(BuildArguments, build)}
