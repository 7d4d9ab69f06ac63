"""Options of `medusa-trt heads convert`.

The command line reads this module for its help, so the module does not import torch.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

DtypeName = Literal["float32", "float16", "bfloat16"]
"""Data types in which heads can be written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertOptions:
    """Write heads in another format.

    Attributes:
        source: heads in any format: a file, a folder, a merged checkpoint, a PEFT adapter or a hub
            id.
        to: name of the format to write; medusa-trt heads convert -h lists the names.
        output: folder to write.
        model: the model that the heads belong to, for formats that need its name, its unembedding
            or all its weights: an alias, a folder, a .gguf file or a hub id (default: the model
            that comes with the source).
        dtype: data type of the weights (default: the source's, or float32 if that is FP8).
        overwrite: replace a folder of heads that exists.
    """

    source: Annotated[str, "SOURCE"]
    to: Annotated[str, "--to FORMAT"]
    output: Annotated[Path, "--output FOLDER"]
    model: str | None = None
    dtype: DtypeName | None = None
    overwrite: bool = False
