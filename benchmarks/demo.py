"""Answers one question of each MT-bench category, plainly and with Medusa on one engine.

    python benchmarks/demo.py BUNDLE

Prints the speed of both and whether their tokens are the same; the exit code is 1 if they differ.
"""

import statistics
import sys
from dataclasses import replace

from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table
from script import add_bundles, make_parser, name_busy_machine, report_errors

from medusa_trt.calibration.bench.measurement import measure_replies, warm_up
from medusa_trt.calibration.bench.options import BenchOptions
from medusa_trt.calibration.bench.summary import summarize
from medusa_trt.calibration.prompts import load_mt_bench_prompts, spread_over_categories
from medusa_trt.runtime.session import MedusaSession

OPTIONS = BenchOptions(compared=("greedy",), rounds=3, max_new_tokens=128)
SHOWN_CATEGORY = "coding"


@report_errors
def main() -> int:
    """Runs the demo."""
    parser = make_parser(__doc__)
    add_bundles(parser)
    parser.add_argument("--threads", type=int, metavar="N", help="threads of the engine")
    arguments = parser.parse_args()
    with (
        MedusaSession(arguments.bundle, num_threads=arguments.threads) as session,
        name_busy_machine(arguments.threads),
    ):
        return compare(session, Console(highlight=False))


def compare(session: MedusaSession, console: Console) -> int:
    """Measures both ways in turn, and prints one reply and the medians; returns the exit code."""
    manifest = session.bundle.manifest
    heads = manifest.require_heads("the demo")
    console.print(
        f"[bold]{manifest.model.name}[/bold] on {manifest.target.name}, "
        f"{manifest.target.precision}, greedy; {heads.num_heads} heads, "
        "trees grown at each step\n"
    )
    questions = load_mt_bench_prompts()
    num_categories = len({question.category for question in questions})
    prompts = [
        replace(question, turns=question.turns[:1])
        for question in spread_over_categories(questions, num_categories)
    ]
    warm_up(session, prompts[0], OPTIONS)
    replies = track(
        measure_replies(session, prompts, OPTIONS),
        "answering",
        total=len(prompts) * len(OPTIONS.modes) * OPTIONS.rounds,
        console=console,
        transient=True,
    )
    rows = list(replies)
    summary = summarize(rows, OPTIONS.modes)
    shown = next(row for row in rows if row.category == SHOWN_CATEGORY)
    question = next(prompt.turns[0] for prompt in prompts if prompt.id == shown.prompt_id)
    console.print(f"[bold]{escape(question)}[/bold]\n")
    console.print(f"{session.text.decode(shown.token_ids).strip()}\n", markup=False)
    table = Table(title=f"Tokens per second, medians of {OPTIONS.rounds} interleaved rounds")
    for column in ("question", "plain", "Medusa", "tokens per step", "speedup"):
        table.add_column(column, justify="left" if column == "question" else "right")
    speedups = []
    for row in summary.categories:
        assert row.speedup is not None
        speedups.append(row.speedup.median)
        rates = (f"{row.baseline_tokens_per_s:.1f}", f"{row.tokens_per_s:.1f}")
        accepted = f"{row.mean_accept_length:.2f}"
        table.add_row(row.category, *rates, accepted, f"{row.speedup.median:.2f}x")
    console.print(table)
    (step_ratio,) = (mode.step_ratio.median for mode in summary.modes if mode.step_ratio)
    console.print(
        f"Speedup of Medusa over plain decoding on the same engine: "
        f"{statistics.geometric_mean(speedups):.2f}x (geometric mean); a step takes "
        f"{step_ratio:.2f} times a plain one (median). "
        + (
            "[bold red]The tokens differ: please report this.[/bold red]"
            if summary.differences
            else "Both give the same tokens."
        )
    )
    return 1 if summary.differences else 0


if __name__ == "__main__":
    sys.exit(main())
