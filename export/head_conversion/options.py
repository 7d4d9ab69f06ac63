"""Options of a conversion of heads. The command line reads this module: it imports no torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

DtypeName = Literal["float32", "float16", "bfloat16"]
"""Types that heads can be written in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertOptions:
    """Write heads in another format.

    Attributes:
        source: heads in any format: a file, a folder, a merged checkpoint, a PEFT adapter or a hub
            id.
        to: name of the format to write, as medusa-trt heads convert -h lists them.
        output: folder to write.
        model: the model that the heads belong to, for formats that need its name, its unembedding
            or all its weights: an alias, a folder, a .gguf file or a hub id (default: the model
            that comes with the source).
        dtype: type of the weights (default: the source's, float32 for FP8).
        overwrite: replace a folder of heads that is there.
    """

    source: Annotated[str, "SOURCE"]
    to: Annotated[str, "--to FORMAT"]
    output: Annotated[Path, "--output FOLDER"]
    model: str | None = None
    dtype: DtypeName | None = None
    overwrite: bool = False
