"""Step time of a bundle against the number of nodes, as a table.

    python benchmarks/step_latency.py BUNDLE [--past 256] [--threads 2]

Sizes are interleaved and medians given, since other work on the machine comes and goes. The heads
and the host's part (candidates, acceptance, commit) are measured in the same run.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from medusa_trt.errors import MedusaError
from medusa_trt.runtime.acceptance import accept_exact
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.candidates import tokens_from_candidates
from medusa_trt.runtime.ort_engine import OrtEngine
from medusa_trt.tree_configs import MedusaTree, chain_tree, load_tree

NUM_NODES = (1, 2, 3, 4, 6, 8, 16, 32, 64)
ROUNDS = 15


def main() -> int:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("--past", type=int, default=256, help="cached tokens")
    parser.add_argument("--threads", type=int, help="threads for one step")
    arguments = parser.parse_args()
    try:
        bundle = Bundle.open(arguments.bundle)
        capacity = arguments.past + max(NUM_NODES)
        engine = OrtEngine(bundle, capacity=capacity, num_threads=arguments.threads)
        report(bundle, engine, arguments.past)
    except MedusaError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def report(bundle: Bundle, engine: OrtEngine, past: int) -> None:
    """Measures and prints."""
    rng = np.random.default_rng(0)
    engine.cache.fill(rng.normal(0, 0.1, (1, 1, 1, 1, engine.capacity, 1)).astype(np.float32))
    actions: dict[str, Callable[[], object]] = {}
    for num_nodes in NUM_NODES:
        tree, ids = chain_tree(num_nodes - 1), rng.integers(0, 1000, num_nodes)
        actions[f"verify {num_nodes}"] = partial(engine.verify, ids[None], tree, [past])
    hidden = np.ones((1, bundle.manifest.model.hidden_size), np.float32)
    actions["heads"] = lambda: engine.draft(hidden)
    published = load_tree("mc_sim_7b_63")
    actions["host, 64 nodes"] = host_work(engine, published, past)
    times_ms: dict[str, list[float]] = {name: [] for name in actions}
    for round_ in range(ROUNDS + 1):
        for name, action in actions.items():
            start = time.perf_counter()
            action()
            if round_ > 0:
                times_ms[name].append(1e3 * (time.perf_counter() - start))
    base_ms = statistics.median(times_ms[f"verify {bundle.manifest.target.min_rows}"])
    table = Table(title=f"{bundle.manifest.model.name}, past {past}, {ROUNDS} rounds")
    for column in ("step", "median ms", "quartiles ms", "ratio to plain"):
        table.add_column(column, justify="left" if column == "step" else "right")
    for name, samples in times_ms.items():
        low, median, high = statistics.quantiles(samples, n=4)
        table.add_row(name, f"{median:.2f}", f"{low:.2f}-{high:.2f}", f"{median / base_ms:.2f}")
    Console().print(table)


def host_work(engine: OrtEngine, tree: MedusaTree, past: int) -> Callable[[], object]:
    """What happens between engine calls: candidates, acceptance and commit of three nodes."""
    draft_ids = np.arange(4 * 10).reshape(1, 4, 10)
    tree_indices = tree.tree_indices(10).tolist()
    path = tree.retrieve_indices[0][: tree.path_lengths[0]].tolist()
    (agreed,) = tokens_from_candidates([7], draft_ids, tree_indices)
    argmax = [-1] * tree.num_nodes
    for parent, child in pairwise(path):
        argmax[parent] = agreed[child]

    def work() -> None:
        (tokens,) = tokens_from_candidates([7], draft_ids, tree_indices)
        engine.commit(0, past, accept_exact(tree, tokens, argmax).nodes)

    return work


if __name__ == "__main__":
    sys.exit(main())
