"""Compares how far bundles are from their unquantized model, along the first one's greedy replies.

    python benchmarks/rounding.py BUNDLE ... [--model MODEL] [--skip N] [--num-prompts N]

Each bundle and the model predict every token of the same replies. `--skip` leaves out the prompts
that a compensated rounding was fitted to.
"""

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from script import (
    add_bundles,
    add_numbers,
    check_output,
    check_threads,
    make_parser,
    report_errors,
    write_json,
)

from medusa_trt.calibration.prompts import (
    PACKAGED,
    BenchPrompt,
    prompts_from_source,
    select_further_prompts,
)
from medusa_trt.calibration.quantization.inputs import load_unquantized_model
from medusa_trt.calibration.quantization.meter import Text, compute_logits
from medusa_trt.calibration.replies import encode_first_turn, generate_whole_reply, run_over_text
from medusa_trt.cli.terminal import make_table_console
from medusa_trt.export.comparison.logits import compute_agreement, merge_agreements
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.manifest import Agreement
from medusa_trt.runtime.options import GenerationOptions
from medusa_trt.runtime.session import MedusaSession


class Row(msgspec.Struct, frozen=True):
    """A bundle, and how it agrees with the model."""

    bundle: str
    megabytes: float
    agreement: Agreement


def generate_texts(
    session: MedusaSession, prompts: Sequence[BenchPrompt], max_new_tokens: int
) -> list[Text]:
    """Generates a greedy reply to each prompt."""
    options = GenerationOptions(max_new_tokens=max_new_tokens)
    texts = []
    for prompt in prompts:
        ids = encode_first_turn(session, prompt)
        reply = generate_whole_reply(session, ids, options)
        texts.append(Text(tuple(ids), tuple(reply.token_ids)))
    return texts


def predict(session: MedusaSession, text: Text) -> NDArray[np.float32]:
    """Logits (n, vocab_size) that predict a reply's n tokens."""
    ids = [*text.prompt_ids, *text.token_ids[:-1]]
    outputs = run_over_text(session, ids, len(text.prompt_ids) - 1, logits=True)
    return np.concatenate([part.logits.copy() for part in outputs if part.logits is not None])


def compare_bundle(
    path: Path, threads: int, texts: Sequence[Text], expected: Sequence[NDArray[np.float32]]
) -> Row:
    """Compares a bundle's predictions with the model's."""
    bundle = Bundle.open(path)
    with MedusaSession(bundle, num_threads=threads) as session:
        agreements = [
            compute_agreement(predict(session, text), logits)
            for text, logits in zip(texts, expected, strict=True)
        ]
    size = sum(file.stat().st_size for file in path.iterdir() if file.is_file())
    return Row(path.name, size / 1e6, merge_agreements(agreements))


def show_row(console: Console, row: Row) -> None:
    """Prints a bundle's figures in a line."""
    result = row.agreement
    console.print(
        f"{row.bundle}: {row.megabytes:.1f} MB, KL {result.kl_divergence:.4f} nats, same likeliest "
        f"token at {result.argmax_agreement:.1%} of {result.num_positions} positions",
        soft_wrap=True,
        highlight=False,
    )


@report_errors
def main() -> int:
    parser = make_parser(__doc__)
    add_bundles(parser, several=True)
    parser.add_argument("--model", help="the unquantized model (default: what the bundle names)")
    parser.add_argument("--prompts", default=PACKAGED, help="packaged, mt-bench or a file")
    add_numbers(
        parser,
        ("--skip", 0, "prompts to leave out at the beginning"),
        ("--num-prompts", 24, "prompts to use"),
        ("--max-new-tokens", 128, "most tokens of each reply"),
        ("--threads", 1, "threads of the engine and of the model"),
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to a file")
    arguments = parser.parse_args()
    check_threads([arguments.threads])
    check_output(arguments.json)
    torch.set_num_threads(arguments.threads)
    if arguments.skip:
        prompts = select_further_prompts(arguments.prompts, arguments.skip, arguments.num_prompts)
    else:
        prompts = prompts_from_source(arguments.prompts, arguments.num_prompts)
    first = Bundle.open(arguments.bundles[0])
    base = load_unquantized_model(first, arguments.model)
    with MedusaSession(first, num_threads=arguments.threads) as session:
        texts = generate_texts(session, prompts, arguments.max_new_tokens)
    with torch.inference_mode():
        expected = [compute_logits(base.model, text).numpy() for text in texts]
    rows = []
    console = make_table_console()
    for path in arguments.bundles:
        rows.append(compare_bundle(path, arguments.threads, texts, expected))
        show_row(console, rows[-1])
    write_json(arguments.json, rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
