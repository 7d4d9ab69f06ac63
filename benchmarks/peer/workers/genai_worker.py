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
    network = _load(model, threads)

    def start(prompt_ids: Sequence[int], max_new_tokens: int) -> Iterator[list[int]]:
        params = onnxruntime_genai.GeneratorParams(network)
        params.set_search_options(do_sample=False, max_length=max_length)
        generator = onnxruntime_genai.Generator(network, params)
        return generate_tokens(generator, prompt_ids, max_new_tokens)

    return ["onnxruntime-genai", "onnxruntime"], start


def _load(model: str, threads: int) -> "onnxruntime_genai.Model":
    manifest = json.loads((Path(model) / "genai_config.json").read_bytes())
    config = onnxruntime_genai.Config(model)
    config.clear_providers()
    session_options = {"intra_op_num_threads": threads}
    last = manifest["model"]["vocab_size"] - 1
    overlay = {
        "eos_token_id": last,
        "pad_token_id": last,
        "decoder": {"session_options": session_options},
    }
    config.overlay(json.dumps({"model": overlay}))
    return onnxruntime_genai.Model(config)


def generate_tokens(
    generator: "onnxruntime_genai.Generator", prompt_ids: Sequence[int], max_new_tokens: int
) -> Iterator[list[int]]:
    """Reads the prompt, then yields one token for each step."""
    generator.append_tokens(np.array([prompt_ids], np.int32))
    for _ in range(max_new_tokens):
        generator.generate_next_token()
        yield [int(generator.get_next_tokens()[0])]


def load_many(
    model: str, max_length: int, threads: int, concurrency: int
) -> tuple[list[str], Callable[[Sequence[Sequence[int]], int], Iterator[dict[int, list[int]]]]]:
    """Loads the model for static batches, see `loop.py`.

    On the CPU, onnxruntime-genai begins a batch when the one before has ended.
    """
    network = _load(model, threads)
    pad = json.loads((Path(model) / "genai_config.json").read_bytes())["model"]["vocab_size"] - 1

    def start(
        prompts: Sequence[Sequence[int]], max_new_tokens: int
    ) -> Iterator[dict[int, list[int]]]:
        for first in range(0, len(prompts), concurrency):
            batch = prompts[first : first + concurrency]
            params = onnxruntime_genai.GeneratorParams(network)
            params.set_search_options(do_sample=False, max_length=max_length, batch_size=len(batch))
            generator = onnxruntime_genai.Generator(network, params)
            length = max(map(len, batch))
            rows = [[*prompt, *[pad] * (length - len(prompt))] for prompt in batch]
            generator.append_tokens(np.array(rows, np.int32))
            for _ in range(max_new_tokens):
                generator.generate_next_token()
                tokens = generator.get_next_tokens()
                yield {first + row: [int(token)] for row, token in enumerate(tokens)}

    return ["onnxruntime-genai", "onnxruntime"], start
