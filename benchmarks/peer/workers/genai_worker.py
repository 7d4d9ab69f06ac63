"""Worker for onnxruntime-genai, with a model from its own builder."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnxruntime_genai


def load(
    model: str, max_length: int, threads: int
) -> tuple[list[str], Callable[[Sequence[int], int], Iterator[list[int]]]]:
    """Loads the model, see `loop.py`; `max_length` is the size of the KV cache in tokens.

    The vocabulary's last token, which hardly occurs, replaces the end-of-sequence token, so that
    every reply has the requested length.
    """
    manifest = json.loads((Path(model) / "genai_config.json").read_bytes())
    config = onnxruntime_genai.Config(model)
    config.clear_providers()
    session_options = {"intra_op_num_threads": threads}
    overlay = {
        "eos_token_id": manifest["model"]["vocab_size"] - 1,
        "decoder": {"session_options": session_options},
    }
    config.overlay(json.dumps({"model": overlay}))
    network = onnxruntime_genai.Model(config)

    def start(prompt_ids: Sequence[int], max_new_tokens: int) -> Iterator[list[int]]:
        params = onnxruntime_genai.GeneratorParams(network)
        params.set_search_options(do_sample=False, max_length=max_length)
        generator = onnxruntime_genai.Generator(network, params)
        return generate_tokens(generator, prompt_ids, max_new_tokens)

    return ["onnxruntime-genai", "onnxruntime"], start


def generate_tokens(
    generator: "onnxruntime_genai.Generator", prompt_ids: Sequence[int], max_new_tokens: int
) -> Iterator[list[int]]:
    """Reads the prompt, then yields one token for each step."""
    generator.append_tokens(np.array([prompt_ids], np.int32))
    for _ in range(max_new_tokens):
        generator.generate_next_token()
        yield [int(generator.get_next_tokens()[0])]
