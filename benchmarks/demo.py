"""Answers a question of each kind, plainly and with Medusa on one engine, and compares.

The questions are the first of each category of MT-bench.

python benchmarks/demo.py BUNDLE
"""

import argparse
import statistics
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from medusa_trt.calibration.prompts import mt_bench_prompts, spread_over_categories
from medusa_trt.errors import MedusaError
from medusa_trt.runtime.session import Generation, GenerationOptions, MedusaSession
from medusa_trt.tree_configs import load_tree

ROUNDS = 3
SHOWN = "coding"
MAX_NEW_TOKENS = 128


def main() -> int:
    """Runs the demo; the exit code is 0 only if both ways gave the same tokens."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("bundle", metavar="BUNDLE")
    parser.add_argument("--threads", type=int, metavar="N", help="threads for one step")
    arguments = parser.parse_args()
    try:
        with MedusaSession(arguments.bundle, num_threads=arguments.threads) as session:
            return compare(session, Console(highlight=False))
    except MedusaError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def compare(session: MedusaSession, console: Console) -> int:
    """Runs both ways in turn, several rounds, and prints replies and medians."""
    manifest = session.bundle.manifest
    console.print(
        f"[bold]{manifest.model.name}[/bold] on {manifest.target.name}, "
        f"{manifest.target.precision}, greedy; {manifest.heads.num_heads} heads, "
        f"tree {manifest.tree_name} with {session.bundle.tree.num_nodes} nodes\n"
    )
    table = Table(title=f"Tokens per second, medians of {ROUNDS} interleaved rounds")
    for column in ("question", "tokens", "plain", "Medusa", "accepted", "speedup"):
        table.add_column(column, justify="left" if column == "question" else "right")
    table.add_column("identical")
    speedups, all_identical = [], True
    questions = mt_bench_prompts()
    num_categories = len({question.category for question in questions})
    for question in track(
        spread_over_categories(questions, num_categories),
        "answering",
        console=console,
        transient=True,
    ):
        plain, medusa = rounds(session, question.turns[0])
        if question.category == SHOWN:
            console.print(f"[bold]{escape(question.turns[0])}[/bold]\n")
            console.print(f"{medusa[0].text.strip()}\n", markup=False)
        identical = all(reply.token_ids == plain[0].token_ids for reply in (*plain, *medusa))
        all_identical &= identical
        rates = [
            statistics.median(reply.stats.tokens_per_s for reply in way) for way in (plain, medusa)
        ]
        speedups.append(rates[1] / rates[0])
        table.add_row(
            question.category,
            str(medusa[0].stats.new_tokens),
            *(f"{rate:.1f}" for rate in rates),
            f"{medusa[0].stats.mean_accept_length:.2f}",
            f"{speedups[-1]:.2f}x",
            "yes" if identical else "NO",
        )
    console.print(table)
    console.print(
        f"Speedup of Medusa over plain decoding on the same engine: "
        f"{statistics.geometric_mean(speedups):.2f}x (geometric mean). "
        + (
            "Both give the same tokens."
            if all_identical
            else "[bold red]The tokens differ: please report this.[/bold red]"
        )
    )
    return 0 if all_identical else 1


def rounds(session: MedusaSession, prompt: str) -> tuple[Sequence[Generation], ...]:
    """Replies of plain decoding and of Medusa, interleaved; a first round warms both up."""
    messages = [{"role": "user", "content": prompt}]
    ways = [
        GenerationOptions(max_new_tokens=MAX_NEW_TOKENS, tree=tree)
        for tree in (load_tree("plain"), session.bundle.tree)
    ]
    replies: tuple[list[Generation], ...] = ([], [])
    for _ in range(ROUNDS + 1):
        for options, way in zip(ways, replies, strict=True):
            way.append(session.generate(messages, options))
    return replies[0][1:], replies[1][1:]


if __name__ == "__main__":
    sys.exit(main())
