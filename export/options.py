"""Options of an export."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from medusa_trt.errors import ExportError
from medusa_trt.types_of_options import check_types

NO_HEADS = "none"
"""What a user gives as the heads of a bundle without heads."""

TARGET_FLAG = "--target {ort-cpu,ort-cuda,tensorrt,tensorrt-rtx,tensorrt-jetson}"
PRECISION_FLAG = "--precision {int8,int4,fp32,fp16,bf16,fp8}"
"""How the command line spells these options; `export/targets.py` has the tables."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """Export a model and its Medusa heads to a bundle, and compare the bundle with the model.

    Attributes:
        model: the model: an alias (medusa-trt models lists them), a folder, a .gguf file or a hub
            id.
        output: folder of the bundle (default: the model's name, in the current folder).
        heads: the head checkpoint in any format: a file, a folder or a hub id; none for a bundle
            that decodes plainly and by prompt lookup (default: the alias's heads, or those beside
            the model's weights, else none).
        draft_vocabulary: let the heads draft only from the N most frequent tokens, which takes less
            time and changes nothing that is generated (default: all tokens of the heads).
        draft_counts: what these tokens are counted in: a text file, or a folder that medusa-trt
            train data wrote (default: words of a packaged list).
        tree: the draft tree: a file, or a name such as plain, chain-3 or cartesian-2x3; without
            heads a chain (default: the one beside the heads, else the alias's, else the
            target's).
        precision: format of the weights: int8, int4 or fp32 for ort-cpu; fp16, bf16, int8, int4 or
            fp8 for the other targets, as far as they have kernels for it (default: the target's).
        quantization_plan: a file with a format for each weight, as medusa-trt calibrate
            quantization writes it, instead of a precision.
        target: what will run the bundle.
        max_length: longest sequence, in tokens (default: the model's, at most the target's).
        overwrite: replace a bundle that exists.
        random_weights: use the shape of the model (vicuna-7b, vicuna-13b, vicuna-33b, llama-3.2-1b,
            llama-3.1-8b, qwen3-4b or a config.json) with random weights and heads, for builds and
            timing. Such a bundle is not compared.
        num_layers: with random weights, export only this many layers (default: all).
    """

    model: str
    output: Annotated[Path | None, "--output FOLDER"] = None
    heads: str | Path | None = None
    draft_vocabulary: int | None = None
    draft_counts: Annotated[Path | None, "--draft-counts PATH"] = None
    tree: str | None = None
    precision: Annotated[str | None, PRECISION_FLAG] = None
    quantization_plan: Annotated[Path | None, "--quantization-plan FILE"] = None
    target: Annotated[str, TARGET_FLAG] = "ort-cpu"
    max_length: int | None = None
    overwrite: bool = False
    random_weights: bool = False
    num_layers: Annotated[int | None, "--layers N"] = None

    def __post_init__(self) -> None:
        check_types(self, ExportError)
        if self.num_layers is not None and not self.random_weights:
            raise ExportError("--layers cuts a model with --random-weights only")
        if self.quantization_plan is not None and self.precision is not None:
            raise ExportError("--precision and --quantization-plan exclude each other: give one")
        if self.random_weights and self.heads not in (None, NO_HEADS):
            raise ExportError("--random-weights makes its own heads: leave --heads out")
        if self.draft_counts is not None and self.draft_vocabulary is None:
            raise ExportError("--draft-counts needs the number of tokens: give --draft-vocabulary")
