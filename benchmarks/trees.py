"""Compares the speed of draft trees with plain decoding, interleaved on one engine.

    python benchmarks/trees.py BUNDLE [--threads N] [--prompts mt-bench] [--tree FILE ...]

Every tree generates each reply twice, and the second time counts. The exit code is 1 if a tree
changes the tokens.
"""

import statistics
import sys
from argparse import Namespace
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table
from script import (
    add_bundles,
    add_numbers,
    check_output,
    make_parser,
    name_busy_machine,
    report_errors,
    write_json,
)

from medusa_trt.calibration.bench.summary import quartiles
from medusa_trt.calibration.prompts import prompts_from_source
from medusa_trt.calibration.replies import encode_first_turn
from medusa_trt.errors import TreeError
from medusa_trt.runtime.session import GenerationOptions, GenerationStats, MedusaSession
from medusa_trt.tree_configs import MedusaTree, load_tree, preset_names

_GROWN = "grown at each step"
_CHAINS = ("chain-1", "chain-2", "chain-3")


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeRow:
    """Medians over the prompts for one tree; `low` and `high` are quartiles of `over_plain`.

    `nodes` is the mean over all steps, which may copy fewer drafts than the tree has.

    `step_over_plain` is the time of a step over that of a plain one, as they follow each other.
    """

    over_plain: float
    tree: str
    nodes: float
    tokens_per_s: float
    low: float
    high: float
    tokens_per_step: float
    step_over_plain: float


@report_errors
def main() -> int:
    """Compares the trees."""
    parser = make_parser(__doc__)
    add_bundles(parser)
    parser.add_argument("--threads", type=int, metavar="N", help="threads of the engine")
    parser.add_argument(
        "--prompts", default="packaged", metavar="SOURCE", help="packaged, mt-bench or a file"
    )
    add_numbers(
        parser,
        ("--num-prompts", 20, "prompts to answer"),
        ("--max-new-tokens", 128, "tokens of a reply, at most"),
        (
            "--lookup-ngram",
            GenerationOptions().lookup_ngram,
            "tokens that prompt lookup must find again; 0 drafts with the heads only",
        ),
    )
    parser.add_argument(
        "--tree",
        action="append",
        metavar="TREE",
        help="a tree's name or file; may be repeated (default: the bundle's tree and all presets); "
        "grown trees are always compared",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table to a file")
    arguments = parser.parse_args()
    check_output(arguments.json)
    with name_busy_machine(arguments.threads):
        return compare(arguments)


def compare(arguments: Namespace) -> int:
    """Generates every prompt with every tree in turn, and prints medians over the prompts."""
    prompts = prompts_from_source(arguments.prompts, arguments.num_prompts)
    with MedusaSession(arguments.bundle, num_threads=arguments.threads) as session:
        trees = _choose_trees(session, arguments.tree)
        stats: dict[str, list[GenerationStats]] = {name: [] for name in trees}
        nodes: dict[str, list[float]] = {name: [] for name in trees}
        names = list(trees)
        num_different = 0
        for number, prompt in enumerate(track(prompts, "prompts", console=Console(stderr=True))):
            messages = encode_first_turn(session, prompt)
            texts = {}
            # The first tree starts with colder caches than the last one, so the order rotates.
            for name in [*names[number % len(names) :], *names[: number % len(names)]]:
                options = GenerationOptions(
                    max_new_tokens=arguments.max_new_tokens,
                    tree=trees[name],
                    lookup_ngram=arguments.lookup_ngram,
                )
                session.generate(messages, options)
                decoder = session.decoder
                num_rows, num_steps = decoder.num_rows, decoder.num_sequence_steps
                reply = session.generate(messages, options)
                texts[name] = reply.token_ids
                if reply.stats.new_tokens > 1:
                    stats[name].append(reply.stats)
                    num_steps = decoder.num_sequence_steps - num_steps
                    nodes[name].append((decoder.num_rows - num_rows) / num_steps)
            num_different += sum(ids != texts["plain"] for ids in texts.values())
    rows = [_summarize(name, nodes[name], stats[name], stats["plain"]) for name in trees]
    rows.sort(key=lambda row: row.over_plain, reverse=True)
    console = Console(highlight=False)
    table = Table(title=f"{len(prompts)} prompts of {arguments.prompts}, fastest first")
    columns = ("tree", "nodes", "tokens/s", "over plain", "quartiles", "tokens per step", "step")
    for column in columns:
        table.add_column(column, justify="left" if column == "tree" else "right", no_wrap=True)
    for row in rows:
        table.add_row(
            row.tree,
            f"{row.nodes:.1f}",
            f"{row.tokens_per_s:.1f}",
            f"{row.over_plain:.2f}",
            f"{row.low:.2f}-{row.high:.2f}",
            f"{row.tokens_per_step:.2f}",
            f"{row.step_over_plain:.2f}",
        )
    console.print(table)
    console.print(f"{num_different} replies differ from plain decoding.")
    write_json(arguments.json, rows)
    return 0 if num_different == 0 else 1


def _choose_trees(session: MedusaSession, specs: list[str] | None) -> dict[str, MedusaTree | None]:
    """Chooses plain decoding, grown trees, and fixed ones that the heads can fill, by name."""
    trees = {load_tree("plain").medusa_choices: load_tree("plain")}
    presets = [load_tree(name) for name in (*_CHAINS, *preset_names())]
    candidates = [session.bundle.tree, *presets] if specs is None else map(load_tree, specs)
    for tree in candidates:
        try:
            session.bundle.manifest.check_tree(tree)
        except TreeError:
            if specs is not None:
                raise
            continue
        if tree.name in {other.name for other in trees.values()}:
            tree = replace(tree, name=f"{tree.name} (preset)")  # the bundle has an older version
        trees.setdefault(tree.medusa_choices, tree)
    chosen: dict[str, MedusaTree | None] = {tree.name: tree for tree in trees.values()}
    return chosen | ({_GROWN: None} if session.decoder.drafter.grows_trees else {})


def _summarize(
    name: str, nodes: list[float], stats: list[GenerationStats], plain: list[GenerationStats]
) -> TreeRow:
    pairs = list(zip(stats, plain, strict=True))
    ratios = quartiles(reply.tokens_per_s / other.tokens_per_s for reply, other in pairs)
    assert ratios is not None
    steps = [_step_s(reply) / _step_s(other) for reply, other in pairs]
    return TreeRow(
        over_plain=ratios.median,
        tree=name,
        nodes=statistics.fmean(nodes),
        tokens_per_s=statistics.median(reply.tokens_per_s for reply in stats),
        low=ratios.low,
        high=ratios.high,
        tokens_per_step=statistics.fmean(reply.mean_accept_length for reply in stats),
        step_over_plain=statistics.median(steps),
    )


def _step_s(stats: GenerationStats) -> float:
    return stats.decode_s / len(stats.accept_lengths)


if __name__ == "__main__":
    sys.exit(main())
