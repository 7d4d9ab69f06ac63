"""Checks and times a bundle's engines on a GPU: `python benchmarks/gpu_check.py BUNDLE`.

1. Greedy replies with the bundle's tree equal those of plain decoding, token for token; tokens a
   second of both.
2. Time of a step over 1 to 128 nodes at two lengths of context, with the share of the memory
   bandwidth that reading the weights takes.

Build the engines first (`medusa-trt build BUNDLE`). With `--backend ort-cpu` the same runs on a
machine without a GPU, which checks this script and nothing of TensorRT.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from medusa_trt.errors import MedusaError
from medusa_trt.runtime.bundle import WEIGHTS_FILE, Bundle
from medusa_trt.runtime.session import GenerationOptions, MedusaSession
from medusa_trt.tree_configs import chain_tree

PROMPTS = (
    "Why is the sky blue?",
    "Write a short story about a lighthouse keeper.",
    "List five tips for a good night's sleep.",
)
TREE_SIZES = (1, 2, 4, 8, 16, 32, 64, 96, 128)
CONTEXTS = (512, 4096)
_WARM_UP = 3


def main() -> int:
    """Runs both parts; returns 1 where a reply differs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--backend", help="tensorrt, tensorrt-rtx or ort-cpu")
    parser.add_argument("--tokens", type=int, default=128, help="of a reply")
    parser.add_argument("--rounds", type=int, default=30, help="steps timed at each point")
    parser.add_argument("--bandwidth", type=float, metavar="GB/S", help="of the GPU's memory")
    parser.add_argument(
        "--contexts", type=int, nargs="+", default=CONTEXTS, metavar="N", help="cached tokens"
    )
    arguments = parser.parse_args()
    console = Console()
    try:
        bundle = Bundle.open(arguments.bundle)
        with MedusaSession(bundle, backend=arguments.backend) as session:
            identical = _compare(session, arguments.tokens, console)
            for context in arguments.contexts:
                _time_steps(session, context, arguments.rounds, arguments.bandwidth, console)
    except MedusaError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0 if identical else 1


def _compare(session: MedusaSession, num_tokens: int, console: Console) -> bool:
    table = Table("prompt", "plain, tokens/s", "Medusa, tokens/s", "tokens a step", "identical")
    identical = True
    for prompt in PROMPTS:
        session.generate(prompt, _options(8, plain=False))
        plain = session.generate(prompt, _options(num_tokens, plain=True))
        medusa = session.generate(prompt, _options(num_tokens, plain=False))
        same = plain.token_ids == medusa.token_ids
        identical &= same
        table.add_row(
            prompt,
            f"{plain.stats.tokens_per_s:.1f}",
            f"{medusa.stats.tokens_per_s:.1f}",
            f"{medusa.stats.mean_accept_length:.2f}",
            "yes" if same else "NO",
        )
    console.print(table)
    return identical


def _options(num_tokens: int, *, plain: bool) -> GenerationOptions:
    tree = chain_tree(0) if plain else None
    return GenerationOptions(max_new_tokens=num_tokens, tree=tree, ignore_eos=True)


def _time_steps(
    session: MedusaSession,
    context: int,
    num_rounds: int,
    bandwidth: float | None,
    console: Console,
) -> None:
    capacity = session.engine.capacity
    if context >= capacity:
        console.print(f"context {context} is left out: the cache has {capacity} rows")
        return
    size_bytes = session.bundle.manifest.files[WEIGHTS_FILE].size_bytes
    table = Table("nodes", "median, ms", "p90, ms", "share of bandwidth", title=f"{context} cached")
    for num_nodes in TREE_SIZES:
        if context + num_nodes > capacity:
            continue
        tree, tokens = chain_tree(num_nodes - 1), [[1] * num_nodes]
        times_ms = []
        for index in range(num_rounds + _WARM_UP):
            start = time.perf_counter()
            session.engine.verify(tokens, tree, [context])
            if index >= _WARM_UP:
                times_ms.append(1e3 * (time.perf_counter() - start))
        median_ms = statistics.median(times_ms)
        p90_ms = statistics.quantiles(times_ms, n=10)[-1]
        share = "-" if bandwidth is None else f"{size_bytes / 1e6 / median_ms / bandwidth:.0%}"
        table.add_row(str(num_nodes), f"{median_ms:.2f}", f"{p90_ms:.2f}", share)
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
