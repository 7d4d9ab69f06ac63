"""Measures the step time of bundles by the number of nodes, with its lower bounds.

    python benchmarks/step_latency.py BUNDLE... [--past 256 --past 1024] [--threads 1 --threads 2]

All measurements are interleaved and the medians shown, because other work on the machine comes and
goes. Prefill, the heads and the host's work (candidates, acceptance, commit) are measured too. The
lower bounds are the times to read the weights once and to compute the matrix products.
"""

import sys
import time
from argparse import Namespace
from array import array
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
from rich.console import Console
from script import (
    add_bundles,
    add_numbers,
    check_output,
    check_threads,
    make_parser,
    name_busy_machine,
    report_errors,
    write_json,
)
from step.floors import ArithmeticFloor, make_reader, read_products
from step.report import StepReport, StepTable, print_report

from medusa_trt.errors import MedusaError
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.decoding.acceptance import accept_exact
from medusa_trt.runtime.decoding.drafting import node_tokens_from_indices, tokens_from_candidates
from medusa_trt.runtime.engines.machine import Machine
from medusa_trt.runtime.engines.ort_cpu import OrtEngine
from medusa_trt.tree_configs import MedusaTree, chain_tree, load_tree

NUM_NODES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
PREFILL_TOKENS = 512


@report_errors
def main() -> int:
    """Runs the benchmark."""
    parser = make_parser(__doc__)
    add_bundles(parser, several=True)
    lists = (("--past", "tokens in the KV cache", 256), ("--threads", "threads of the engine", 1))
    for name, what, default in lists:
        text = f"{what}; may be repeated (default: {default})"
        parser.add_argument(name, type=int, action="append", metavar="N", help=text)
    add_numbers(parser, ("--rounds", 15, "times each step is measured"))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured")
    arguments = parser.parse_args()
    arguments.past, arguments.threads = arguments.past or [256], arguments.threads or [1]
    check(arguments)
    with name_busy_machine(max(arguments.threads)):
        report = measure(arguments)
    print_report(report, Console())
    write_json(arguments.json, report)
    return 0


def check(arguments: Namespace) -> None:
    """Checks the arguments before anything is measured."""
    check_threads(arguments.threads)
    if min(arguments.past) < 1:
        raise MedusaError(f"--past is {min(arguments.past)}: it must be at least 1")
    if arguments.rounds < 2:
        raise MedusaError(f"--rounds is {arguments.rounds}: it must be at least 2")
    check_output(arguments.json)


def measure(arguments: Namespace) -> StepReport:
    """Measures all bundles with each number of threads."""
    bundles = {str(path): Bundle.open(path) for path in arguments.bundles}
    tables: list[StepTable] = []
    for threads in arguments.threads:
        tables += measure_with_threads(bundles, arguments.past, threads, arguments.rounds)
    return StepReport(
        command=" ".join(["step_latency.py", *sys.argv[1:]]),
        machine=Machine.detect(),
        rounds=arguments.rounds,
        tables=tables,
    )


def measure_with_threads(
    bundles: dict[str, Bundle], pasts: Sequence[int], threads: int, rounds: int
) -> list[StepTable]:
    """Measures one table for each bundle and past length."""
    actions: dict[tuple[str, int, str], Callable[[], object]] = {}
    for path, bundle in bundles.items():
        capacity = max(*pasts, PREFILL_TOKENS) + max(NUM_NODES)
        engine = OrtEngine(bundle, capacity=capacity, num_threads=threads)
        for past in pasts:
            size_bytes = read_products(bundle).size_bytes + bundle.count_cache_bytes(past)
            named = name_actions(bundle, engine, past) | {"read": make_reader(size_bytes, threads)}
            actions |= {(path, past, name): action for name, action in named.items()}
    times_ms = time_interleaved(actions, rounds)
    tables = []
    for path, bundle in bundles.items():
        products = read_products(bundle)
        arithmetic = ArithmeticFloor(products, threads)
        arithmetic_ms = {nodes: arithmetic.measure_ms(nodes) for nodes in NUM_NODES}
        for past in pasts:
            chosen = {key[2]: times for key, times in times_ms.items() if key[:2] == (path, past)}
            size_bytes = products.size_bytes + bundle.count_cache_bytes(past)
            table = StepTable(
                bundle=path,
                precision=bundle.manifest.target.precision,
                threads=threads,
                past=past,
                read_bytes=size_bytes,
                arithmetic_ms=arithmetic_ms,
                times_ms=chosen,
            )
            tables.append(table)
    return tables


def name_actions(bundle: Bundle, engine: OrtEngine, past: int) -> dict[str, Callable[[], object]]:
    """Names what is timed: steps by their number of nodes, prefill, heads, the host's work."""
    rng = np.random.default_rng(0)
    engine.cache.fill(rng.normal(0, 0.1, (1, 1, 1, 1, engine.capacity, 1)).astype(np.float32))
    actions: dict[str, Callable[[], object]] = {}
    for num_nodes in NUM_NODES:
        tree, ids = chain_tree(num_nodes - 1), rng.integers(0, 1000, num_nodes)
        actions[str(num_nodes)] = partial(engine.verify, ids[None], tree, [past])
    bundle.manifest.require_heads("step_latency.py")
    hidden = np.ones((1, bundle.manifest.model.hidden_size), np.float32)
    actions["heads"] = lambda: engine.draft(hidden, [0])
    actions["host"] = make_host_work(engine, load_tree("mc_sim_7b_63"), past)
    actions["prefill"] = make_prefill(engine, bundle.manifest.target.prefill_chunk)
    return actions


def time_interleaved(
    actions: dict[tuple[str, int, str], Callable[[], object]], rounds: int
) -> dict[tuple[str, int, str], list[float]]:
    """Times each action in each round, in milliseconds; one more round warms up."""
    times_ms: dict[tuple[str, int, str], list[float]] = {key: [] for key in actions}
    for round_ in range(rounds + 1):
        for key, action in actions.items():
            start = time.perf_counter()
            action()
            if round_ > 0:
                times_ms[key].append(1e3 * (time.perf_counter() - start))
    return times_ms


def make_prefill(engine: OrtEngine, chunk: int) -> Callable[[], object]:
    """Reads a prompt of `PREFILL_TOKENS` tokens in chunks, as a session does."""
    tree, ids = chain_tree(chunk - 1), np.arange(chunk)[None]

    def work() -> None:
        for past in range(0, PREFILL_TOKENS, chunk):
            engine.verify(ids, tree, [past], rows=[chunk - 1])

    return work


def make_host_work(engine: OrtEngine, tree: MedusaTree, past: int) -> Callable[[], object]:
    """Does the work between engine calls: candidates, acceptance and commit of one path."""
    candidates = [memoryview(array("q", range(4 * 10)))]
    node_tokens = node_tokens_from_indices(tree.tree_indices(10).tolist())
    path = tree.retrieve_indices[0][: tree.path_lengths[0]].tolist()
    (agreed,) = tokens_from_candidates([7], candidates, node_tokens)
    argmax = [-1] * tree.num_nodes
    for parent, child in pairwise(path):
        argmax[parent] = agreed[child]

    def work() -> None:
        (tokens,) = tokens_from_candidates([7], candidates, node_tokens)
        engine.cache.commit(0, past, accept_exact(tree, tokens, argmax))

    return work


if __name__ == "__main__":
    sys.exit(main())
