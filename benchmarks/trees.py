"""Tokens per second of every preset tree on one engine, interleaved, against plain decoding.

python benchmarks/trees.py BUNDLE [--threads N] [--prompts mt-bench] [--tree FILE ...]
"""

import argparse
import json
import statistics
import sys
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from medusa_trt.calibration.prompts import prompts_from_source
from medusa_trt.calibration.replies import encode_first_turn
from medusa_trt.errors import MedusaError, TreeError
from medusa_trt.runtime.session import GenerationOptions, MedusaSession
from medusa_trt.tree_configs import MedusaTree, load_tree, preset_names

_CHAINS = ("chain-1", "chain-2", "chain-3")


def main() -> int:
    """Compares the trees; the exit code is 0 only if all gave the same tokens."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("bundle", metavar="BUNDLE")
    parser.add_argument("--threads", type=int, metavar="N", help="threads for one step")
    parser.add_argument(
        "--prompts", default="packaged", metavar="SOURCE", help="packaged, mt-bench or a file"
    )
    parser.add_argument(
        "--lookup-ngram",
        type=int,
        default=GenerationOptions().lookup_ngram,
        metavar="N",
        help="prompt lookup by N tokens; 0: heads alone (default: %(default)s)",
    )
    parser.add_argument("--num-prompts", type=int, default=20, metavar="N")
    parser.add_argument("--max-new-tokens", type=int, default=128, metavar="N")
    parser.add_argument(
        "--tree",
        action="append",
        metavar="TREE",
        help="a tree's name or file; may be repeated (default: the bundle's and all presets)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    try:
        return compare(arguments)
    except MedusaError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def compare(arguments: argparse.Namespace) -> int:
    """Generates every prompt with every tree in turn, and prints medians over the prompts."""
    prompts = prompts_from_source(arguments.prompts, arguments.num_prompts)
    with MedusaSession(arguments.bundle, num_threads=arguments.threads) as session:
        trees = _trees(session, arguments.tree)
        rates: dict[str, list[float]] = {tree.name: [] for tree in trees}
        accepted: dict[str, list[float]] = {tree.name: [] for tree in trees}
        num_different = 0
        for number, prompt in enumerate(track(prompts, "prompts", console=Console(stderr=True))):
            prompt_ids = encode_first_turn(session, prompt)
            texts = {}
            # Whoever comes first finds another state of the machine than the last one.
            for tree in [*trees[number % len(trees) :], *trees[: number % len(trees)]]:
                options = GenerationOptions(
                    max_new_tokens=arguments.max_new_tokens,
                    tree=tree,
                    lookup_ngram=arguments.lookup_ngram,
                )
                session.generate(prompt_ids, options)
                reply = session.generate(prompt_ids, options)
                texts[tree.name] = reply.token_ids
                if reply.stats.new_tokens > 1:
                    rates[tree.name].append(reply.stats.tokens_per_s)
                    accepted[tree.name].append(reply.stats.mean_accept_length)
            num_different += sum(ids != texts["plain"] for ids in texts.values())
    rows = sorted(_row(tree, rates, accepted) for tree in trees)
    console = Console(highlight=False)
    table = Table(title=f"{len(prompts)} prompts of {arguments.prompts}, fastest first")
    for column in ("tree", "nodes", "tokens/s", "over plain", "quartiles", "tokens a step"):
        table.add_column(column, justify="left" if column == "tree" else "right", no_wrap=True)
    for ratio, name, nodes, rate, low, high, length in reversed(rows):
        table.add_row(
            name,
            str(nodes),
            f"{rate:.1f}",
            f"{ratio:.2f}",
            f"{low:.2f}-{high:.2f}",
            f"{length:.2f}",
        )
    console.print(table)
    console.print(f"{num_different} replies differ from plain decoding.")
    if arguments.json is not None:
        names = ("over_plain", "tree", "nodes", "tokens_per_s", "low", "high", "tokens_per_step")
        found = [dict(zip(names, row, strict=True)) for row in reversed(rows)]
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    return 0 if num_different == 0 else 1


def _trees(session: MedusaSession, wanted: list[str] | None) -> list[MedusaTree]:
    """Plain decoding, and the trees that the heads can fill, each shape once."""
    heads = session.bundle.manifest.heads
    found = {load_tree("plain").medusa_choices: load_tree("plain")}
    presets = [load_tree(name) for name in (*_CHAINS, *preset_names())]
    candidates = [session.bundle.tree, *presets] if wanted is None else map(load_tree, wanted)
    for tree in candidates:
        try:
            tree.check(heads.num_heads, heads.top_k)
        except TreeError:
            if wanted is not None:
                raise
            continue
        if tree.name in {other.name for other in found.values()}:
            tree = replace(tree, name=f"{tree.name} (preset)")  # the bundle has an older one
        found.setdefault(tree.medusa_choices, tree)
    return list(found.values())


def _row(
    tree: MedusaTree, rates: dict[str, list[float]], accepted: dict[str, list[float]]
) -> tuple[float, str, int, float, float, float, float]:
    ratios = [rate / plain for rate, plain in zip(rates[tree.name], rates["plain"], strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return (
        statistics.median(ratios),
        tree.name,
        tree.num_nodes,
        statistics.median(rates[tree.name]),
        low,
        high,
        statistics.fmean(accepted[tree.name]),
    )


if __name__ == "__main__":
    sys.exit(main())
