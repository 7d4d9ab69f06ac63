"""Worker for transformers on the CPU: one eager forward call for each token, without `generate`."""

from collections.abc import Callable, Iterator, Sequence

import torch
from transformers import AutoModelForCausalLM, DynamicCache


def load(
    model: str, dtype: str, threads: int
) -> tuple[list[str], Callable[[Sequence[int], int], Iterator[list[int]]]]:
    """Loads the model, see `loop.py`."""
    torch.set_num_threads(threads)
    network = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).eval()

    def start(prompt_ids: Sequence[int], max_new_tokens: int) -> Iterator[list[int]]:
        with torch.inference_mode():
            cache = DynamicCache(config=network.config)
            new_ids = list(prompt_ids)
            for _ in range(max_new_tokens):
                logits = network(
                    torch.tensor([new_ids]), past_key_values=cache, logits_to_keep=1
                ).logits
                new_ids = [int(logits[0, -1].argmax())]
                yield new_ids

    return ["transformers", "torch"], start
