"""Reading head checkpoints: the tensors decide what the heads are, a config only cross-checks."""

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch

from medusa_trt.errors import MedusaWarning
from medusa_trt.export.heads.assembly import heads_from_keys
from medusa_trt.export.heads.key_layouts import recognize
from medusa_trt.export.heads.loading import load_heads
from medusa_trt.export.heads.medusa_heads import MedusaHeads


def heads_from_path(path: Path) -> MedusaHeads:
    """Reads heads in any public layout from a file or a folder; see `load_heads`.

    Where a config beside the tensors contradicts them, the tensors win, with a warning.

    Raises:
        HeadsError: no such file, an unsafe or damaged one, or keys that are missing, unknown,
            tied or misshapen.
    """
    loaded = load_heads(path)
    for text in loaded.warnings:
        warnings.warn(text, MedusaWarning, stacklevel=2)
    return loaded.heads


def heads_from_tensors(tensors: Mapping[str, torch.Tensor], source: str) -> MedusaHeads:
    """Builds the heads from named tensors in any layout; `source` names them in errors.

    Raises:
        HeadsError: keys that are missing, unknown, tied or misshapen.
    """
    recognized = recognize(tensors, source)
    named = {key: tensors[name] for key, name in recognized.names.items()}
    return heads_from_keys(recognized, named, source)
