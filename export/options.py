"""What a user asks an export for."""

from dataclasses import dataclass
from pathlib import Path

from medusa_trt.errors import ExportError


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """What to export and where to.

    Attributes:
        model: an alias, a folder, a hub id or a `.gguf` file.
        output: the bundle's folder; the model's name in the current folder by default.
        heads: a head checkpoint in any format: a file, a folder or a hub id; by default the
            alias's own, or those beside the model's weights.
        tree: a tree's name or file; the alias's own, else the target's default.
        precision: weight precision; the target's default if None.
        quantization_plan: a file that gives each weight a format, instead of a precision.
        target: where the bundle will run.
        max_length: longest sequence in tokens; the model's own limit, at most the target's.
        overwrite: replace an existing bundle.
        random_weights: use the model's shape with random weights and heads: for builds and timing.
            Such a bundle is not compared with its model.
        num_layers: with random weights, only so many layers.
    """

    model: str
    output: Path | None = None
    heads: str | Path | None = None
    tree: str | None = None
    precision: str | None = None
    quantization_plan: Path | None = None
    target: str = "ort-cpu"
    max_length: int | None = None
    overwrite: bool = False
    random_weights: bool = False
    num_layers: int | None = None

    def __post_init__(self) -> None:
        if self.num_layers is not None and not self.random_weights:
            raise ExportError("--layers cuts a model with --random-weights only")
        if self.quantization_plan is not None and self.precision is not None:
            raise ExportError("--precision and --quantization-plan exclude each other: give one")
        if self.random_weights and self.heads is not None:
            raise ExportError("--random-weights makes its own heads: leave --heads out")
