"""Compares the speed of draft trees with plain decoding, interleaved on one engine.

    python benchmarks/trees.py BUNDLE [--threads N] [--prompts mt-bench] [--tree FILE ...]

Every tree generates each reply, and the figures are those of `medusa-trt bench`. The exit code is 1
if a tree changes the tokens.
"""

import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import track
from script import (
    add_bundles,
    add_numbers,
    check_output,
    make_parser,
    name_busy_machine,
    report_errors,
    write_json,
)

from medusa_trt.calibration.bench.measurement import measure_replies, warm_up
from medusa_trt.calibration.bench.options import BenchOptions, Mode
from medusa_trt.calibration.bench.summary import summarize
from medusa_trt.calibration.bench.tables import tabulate_modes
from medusa_trt.calibration.prompts import prompts_from_source
from medusa_trt.cli.terminal import make_table_console
from medusa_trt.errors import TreeError
from medusa_trt.runtime.session import MedusaSession
from medusa_trt.tree_configs import list_presets, load_tree

_CHAINS = ("chain-1", "chain-2", "chain-3")


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
        ("--num-prompts", 20, "prompts to answer; of conversations the first turns"),
        ("--max-new-tokens", 128, "tokens of a reply, at most"),
    )
    parser.add_argument(
        "--heads-alone", action="store_true", help="draft by the heads only, without prompt lookup"
    )
    parser.add_argument(
        "--tree",
        action="append",
        metavar="TREE",
        help="a tree's name or file; may be repeated (default: the bundle's tree and all presets); "
        "grown trees are always compared",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to a file")
    arguments = parser.parse_args()
    check_output(arguments.json)
    with name_busy_machine(arguments.threads):
        return compare(arguments)


def compare(arguments: Namespace) -> int:
    """Generates every reply with every tree in turn, and prints medians over the prompts."""
    prompts = [
        replace(prompt, turns=prompt.turns[:1])
        for prompt in prompts_from_source(arguments.prompts, arguments.num_prompts)
    ]
    options = BenchOptions(
        compared=("heads" if arguments.heads_alone else "greedy",),
        max_new_tokens=arguments.max_new_tokens,
    )
    with MedusaSession(arguments.bundle, num_threads=arguments.threads) as session:
        modes = _make_modes(session, options, arguments.tree)
        warm_up(session, prompts[0], options)
        replies = measure_replies(session, prompts, options, modes)
        total = len(prompts) * len(modes)
        rows = list(track(replies, "replies", total, console=Console(stderr=True)))
    summary = summarize(rows, modes)
    trees = sorted(summary.modes, key=lambda mode: mode.speedup.median if mode.speedup else 1.0)
    console = make_table_console()
    console.print(f"{len(prompts)} prompts of {arguments.prompts}, fastest first")
    console.print(tabulate_modes(trees[::-1]))
    write_json(arguments.json, trees[::-1])
    return 1 if summary.differences else 0


def _make_modes(
    session: MedusaSession, options: BenchOptions, specs: list[str] | None
) -> list[Mode]:
    """Makes a mode of plain decoding, of grown trees, and of each tree that the heads can fill."""
    plain, drafting = options.modes
    grown = replace(drafting, name="grown at each step")
    modes = [plain, grown] if session.decoder.drafter.grows_trees else [plain]
    presets = [load_tree(name) for name in (*_CHAINS, *list_presets())]
    trees = [session.bundle.tree, *presets] if specs is None else map(load_tree, specs)
    for tree in dict.fromkeys(trees):
        try:
            session.bundle.manifest.check_tree(tree)
        except TreeError:
            if specs is not None:
                raise
            continue
        # The bundle may have an older version of a preset.
        is_named = any(mode.name == tree.name for mode in modes)
        modes.append(
            replace(drafting, name=f"{tree.name} (preset)" if is_named else tree.name, tree=tree)
        )
    return modes


if __name__ == "__main__":
    sys.exit(main())
