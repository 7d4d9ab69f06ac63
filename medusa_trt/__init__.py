"""medusa-trt: Medusa decoding on ONNX Runtime and TensorRT.

The names in `__all__` are imported at their first use, so that `import medusa_trt` takes no time.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medusa_trt.runtime.bundle import Bundle
    from medusa_trt.runtime.processors.grammar import Grammar
    from medusa_trt.runtime.session import GenerationOptions, MedusaSession, SamplingOptions
    from medusa_trt.runtime.text.prompts import ChatPrompt
    from medusa_trt.tree_configs import MedusaTree, load_tree

__version__ = "0.2.0"

__all__ = [
    "Bundle",
    "ChatPrompt",
    "GenerationOptions",
    "Grammar",
    "MedusaSession",
    "MedusaTree",
    "SamplingOptions",
    "load_tree",
]

_MODULES = {
    "Bundle": "medusa_trt.runtime.bundle",
    "ChatPrompt": "medusa_trt.runtime.text.prompts",
    "GenerationOptions": "medusa_trt.runtime.session",
    "Grammar": "medusa_trt.runtime.processors.grammar",
    "MedusaSession": "medusa_trt.runtime.session",
    "MedusaTree": "medusa_trt.tree_configs",
    "SamplingOptions": "medusa_trt.runtime.session",
    "load_tree": "medusa_trt.tree_configs",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
