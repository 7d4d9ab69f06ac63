"""Makes the truncated vocabulary that a model's heads draft from, out of its own replies.

    python benchmarks/draft_vocabulary.py --model smollm2-135m --heads HEADS --output HEADS

Counts tokens in the model's replies (half greedy, half sampled) to the self-generated prompts,
keeps the most frequent, and writes the heads with this `token_map`. Every tenth prompt is held
out: the share of its reply tokens that the vocabulary covers is printed for several sizes.
"""

import argparse
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import load_file, save_file

from medusa_trt.calibration.prompts import self_generated_prompts
from medusa_trt.export.models.base_model import BaseModel, load_base_model, source_from_name

SIZES = (1024, 2048, 4096, 8192, 16384, 32768)
BATCH_SIZE = 32
HELD_OUT_EVERY = 10
TEMPERATURE = 0.7


def main() -> None:
    """Runs the script."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--heads", type=Path, required=True, help=".safetensors to read")
    parser.add_argument("--output", type=Path, required=True, help=".safetensors to write")
    parser.add_argument("--size", type=int, default=8192, help="tokens to keep")
    parser.add_argument("--num-prompts", type=int, default=1086)
    parser.add_argument("--max-new-tokens", type=int, default=96)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    base = load_base_model(source_from_name(arguments.model))
    base.model.bfloat16()
    torch.manual_seed(arguments.seed)
    kept: Counter[int] = Counter()
    held_out: Counter[int] = Counter()
    prompts = [prompt.turns[0] for prompt in self_generated_prompts()][: arguments.num_prompts]
    for index, reply in enumerate(replies(base, prompts, arguments.max_new_tokens)):
        (held_out if index % HELD_OUT_EVERY == 0 else kept).update(reply)
    token_map = most_frequent(kept, base.model.config.vocab_size)
    print(f"{kept.total()} tokens counted, {held_out.total()} held out; share covered:")
    for size in SIZES:
        covered = sum(held_out[token] for token in token_map[:size]) / held_out.total()
        print(f"  {size:6d} tokens: {covered:.2%}")
    tensors = load_file(arguments.heads)
    tensors["token_map"] = torch.tensor(sorted(token_map[: arguments.size]))
    save_file(tensors, arguments.output)


def replies(base: BaseModel, prompts: Sequence[str], max_new_tokens: int) -> Iterator[list[int]]:
    """The model's replies to each prompt in turn, batch by batch, every other batch sampled."""
    tokenizer = base.tokenizer
    tokenizer.padding_side = "left"
    generate = cast(Callable[..., torch.Tensor], base.model.generate)
    start = time.perf_counter()
    for batch, first in enumerate(range(0, len(prompts), BATCH_SIZE)):
        texts = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
            )
            for prompt in prompts[first : first + BATCH_SIZE]
        ]
        inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        sampling = {"do_sample": True, "temperature": TEMPERATURE} if batch % 2 else {}
        outputs = generate(**inputs, max_new_tokens=max_new_tokens, **sampling)
        for row in outputs[:, inputs["input_ids"].shape[1] :].tolist():
            ends = [index for index, token in enumerate(row) if token in base.eos_token_ids]
            yield row[: ends[0] + 1] if ends else row
        done = min(first + BATCH_SIZE, len(prompts))
        left_s = (time.perf_counter() - start) / done * (len(prompts) - done)
        print(f"{done}/{len(prompts)} prompts, {left_s:.0f} s left", flush=True)


def most_frequent(counts: Counter[int], vocab_size: int) -> list[int]:
    """All token ids, the most frequent first; unseen ones in id order, which BPE gives meaning."""
    return sorted(range(vocab_size), key=lambda token: (-counts[token], token))


if __name__ == "__main__":
    main()
