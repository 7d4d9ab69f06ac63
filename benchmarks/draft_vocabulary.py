"""Adds a truncated draft vocabulary to a head checkpoint, made from the model's own replies.

    python benchmarks/draft_vocabulary.py --model smollm2-135m --heads HEADS --output HEADS

Counts the tokens of the model's replies (half greedy, half sampled) to the packaged prompts, and
writes the heads with the most frequent tokens as their `token_map`. Every tenth prompt is held out:
the share of its reply tokens that a vocabulary covers is printed for several sizes.
"""

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from script import add_numbers, make_parser, report_errors

from medusa_trt.calibration.progress import Progress
from medusa_trt.export.models.base_model import BaseModel
from medusa_trt.training.backbone import load_backbone
from medusa_trt.training.data.conversation import ChatFrame
from medusa_trt.training.data.distillation import load_seed_prompts
from medusa_trt.training.data.generation import BatchGenerator

SIZES = (1024, 2048, 4096, 8192, 16384, 32768)
BATCH_SIZE = 32
HELD_OUT_EVERY = 10
TEMPERATURE = 0.7


@report_errors
def main() -> int:
    """Runs the script."""
    parser = make_parser(__doc__)
    parser.add_argument("--model", default="smollm2-135m", help="model that the heads belong to")
    parser.add_argument("--heads", type=Path, required=True, help=".safetensors file to read")
    parser.add_argument("--output", type=Path, required=True, help=".safetensors file to write")
    add_numbers(
        parser,
        ("--size", 8192, "tokens of the draft vocabulary"),
        ("--num-prompts", 1086, "prompts to answer"),
        ("--max-new-tokens", 96, "tokens of a reply, at most"),
        ("--seed", 0, "seed of sampling"),
    )
    arguments = parser.parse_args()
    base = load_backbone(arguments.model)
    torch.manual_seed(arguments.seed)
    counts: Counter[int] = Counter()
    held_out: Counter[int] = Counter()
    prompts = [turns[0] for turns in load_seed_prompts(None)][: arguments.num_prompts]
    replies = generate_replies(base, prompts, arguments.max_new_tokens)
    for index, reply in enumerate(replies):
        (held_out if index % HELD_OUT_EVERY == 0 else counts).update(reply)
    # Tokens that do not occur follow in the order of their ids, in which BPE made them.
    ranked = sorted(range(base.model.config.vocab_size), key=lambda token: (-counts[token], token))
    print(f"{counts.total()} tokens counted, {held_out.total()} held out; share covered:")
    for size in SIZES:
        covered = sum(held_out[token] for token in ranked[:size]) / held_out.total()
        print(f"  {size:6d} tokens: {covered:.2%}")
    tensors = load_file(arguments.heads)
    tensors["token_map"] = torch.tensor(sorted(ranked[: arguments.size]))
    save_file(tensors, arguments.output)
    return 0


def generate_replies(
    base: BaseModel, prompts: Sequence[str], max_new_tokens: int
) -> Iterator[list[int]]:
    """Generates the replies batch by batch; every other batch is sampled."""
    generator, frame = BatchGenerator(base), ChatFrame.from_tokenizer(base.tokenizer)
    texts = [frame.encode_opening(base.tokenizer, prompt) for prompt in prompts]
    progress = Progress(-(-len(texts) // BATCH_SIZE), "batches")
    for batch, first in enumerate(range(0, len(texts), BATCH_SIZE)):
        continuations = generator.continue_texts(
            texts[first : first + BATCH_SIZE],
            max_new_tokens=max_new_tokens,
            temperature=TEMPERATURE if batch % 2 else 0.0,
        )
        progress.advance()
        yield from (continuation.token_ids for continuation in continuations)
    progress.end()


if __name__ == "__main__":
    sys.exit(main())
