"""Checks and times a bundle on a GPU: `python benchmarks/gpu_check.py BUNDLE`.

1. A step over a tree against the same tokens as plain text, path by path, a recorded step
   against the first one, and what the device draws for sampling against what the host draws.
   These must agree; where they do not, the exit code is 1.
2. Replies with the bundle's tree and plain ones: tokens a second and tokens a step of the heads
   alone and with prompt lookup, for how many tokens they equal the plain ones, and the host's time
   in a step. In narrow types the products of one row and of several may differ in the last bit, so
   the replies may part where two tokens are all but equal. With `--transformers MODEL`, where the
   bundle's model lies, also tokens a second of transformers with a static cache, for which it
   compiles the model on a GPU.
3. Time of a step over 1 to 128 nodes at two lengths of context, with the share of the memory
   bandwidth that reading the weights and the cache takes (`--bandwidth`; the H100's is 3350
   GB/s), and of drafting and reducing.

A bundle for ort-cuda runs as it is; for TensorRT build the engines first (`medusa-trt build BUNDLE
--max-tree-nodes 128`). Step times need no real weights, only room for context and nodes:
`medusa-export --model vicuna-7b --random-weights --target ort-cuda --max-length 4352`. A bundle for
ort-cpu runs on a machine without a GPU, which checks this script and nothing else.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from medusa_trt.errors import MedusaError
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.options import SamplingOptions
from medusa_trt.runtime.sampling import probabilities_from_logits, token_from_logits
from medusa_trt.runtime.session import GenerationOptions, MedusaSession
from medusa_trt.tree_configs import chain_tree, load_tree

PROMPTS = (
    "Why is the sky blue?",
    "Write a short story about a lighthouse keeper.",
    "List five tips for a good night's sleep.",
)
TREE_SIZES = (1, 2, 4, 8, 16, 32, 64, 96, 128)
CONTEXTS = (512, 4096)
MAX_RELATIVE_ERROR = 0.05
"""Of logits on a tree to those on text: a wrong mask or cache row gives more than 1."""

MIN_EQUAL_DRAWS = 0.99
"""At the edge of two tokens' shares the last bit of an exponential decides."""
MAX_ENTROPY_ERROR = 1e-3

SAMPLING = (
    SamplingOptions(temperature=0.8),
    SamplingOptions(temperature=1.0, top_k=40),
    SamplingOptions(temperature=1.0, top_p=0.9, min_p=0.01),
)
_CHECKED_TREE = "mc_sim_7b_63"
_PAST = 100
_WARM_UP = 3


def main() -> int:
    """Runs all parts; returns 1 where the first one fails."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("bundle", type=Path)
    parser.add_argument(
        "--backend", help="ort-cuda, tensorrt, tensorrt-rtx or ort-cpu (default: the bundle's)"
    )
    parser.add_argument("--tokens", type=int, default=128, help="of a reply")
    parser.add_argument("--rounds", type=int, default=30, help="steps timed at each point")
    parser.add_argument("--bandwidth", type=float, metavar="GB/S", help="of the GPU's memory")
    parser.add_argument(
        "--contexts", type=int, nargs="+", default=CONTEXTS, metavar="N", help="cached tokens"
    )
    parser.add_argument("--transformers", metavar="MODEL", help="hub id or folder to compare with")
    arguments = parser.parse_args()
    console = Console()
    try:
        bundle = Bundle.open(arguments.bundle)
        with MedusaSession(bundle, backend=arguments.backend) as session:
            agrees = _check_steps(session, console) & _check_reductions(session, console)
            _compare(session, arguments.tokens, console)
            for context in arguments.contexts:
                _time_steps(session, context, arguments.rounds, arguments.bandwidth, console)
            _time_others(session, arguments.rounds, console)
        if arguments.transformers is not None:
            dtype = bundle.manifest.target.cache_dtype
            _time_transformers(arguments.transformers, dtype, arguments.tokens, console)
    except MedusaError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0 if agrees else 1


def _check_steps(session: MedusaSession, console: Console) -> bool:
    """A tree's logits against those of its paths as text; a step recorded against unrecorded."""
    engine, tree = session.engine, load_tree(_CHECKED_TREE)
    rng = np.random.default_rng(0)
    vocab_size = session.bundle.manifest.model.vocab_size
    text = rng.integers(0, vocab_size, (1, _PAST))
    tokens = rng.integers(0, vocab_size, (1, tree.num_nodes))
    engine.verify(text, chain_tree(_PAST - 1), [0], rows=(0,))
    runs = []
    for _ in range(3):  # the second is recorded, the third replays it
        logits = engine.verify(tokens, tree, [_PAST], logits=True).logits
        assert logits is not None
        runs.append(logits[0].copy())
    errors = []
    for row, length in zip(tree.retrieve_indices, tree.path_lengths, strict=True):
        path = row[:length]
        logits = engine.verify(tokens[:, path], chain_tree(length - 1), [_PAST], logits=True).logits
        assert logits is not None
        difference = runs[0][path] - logits[0]
        spread = logits[0] - logits[0].mean(-1, keepdims=True)
        errors.append(float(np.sqrt(np.square(difference).mean() / np.square(spread).mean())))
    repeats = all(np.array_equal(run, runs[0]) for run in runs[1:])
    console.print(
        f"tree against text: relative error up to {max(errors):.4f} on {len(errors)} paths "
        f"(allowed: {MAX_RELATIVE_ERROR}); recorded steps repeat the first one: "
        f"{'yes' if repeats else 'NO'}"
    )
    return max(errors) <= MAX_RELATIVE_ERROR and repeats


def _check_reductions(session: MedusaSession, console: Console) -> bool:
    """Draws, entropies and log-probabilities of the device against those of the host."""
    engine, tree = session.engine, load_tree(_CHECKED_TREE)
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, session.bundle.manifest.model.vocab_size, (1, tree.num_nodes))
    logits = engine.verify(tokens, tree, [0], logits=True, reductions=True).logits
    assert logits is not None
    logits = logits.copy()
    num_equal, entropy_error = 0, 0.0
    for sampling in SAMPLING:
        uniforms = rng.random((1, tree.num_nodes))
        found = engine.reduce(tokens, tree, sampling, uniforms)
        flat = SamplingOptions(temperature=sampling.temperature)
        for row in range(tree.num_nodes):
            drawn = token_from_logits(logits[0, row], sampling, uniforms[0, row])
            num_equal += int(found.sampled[0, row] == drawn)
            probs = probabilities_from_logits(logits[0, row], flat)
            entropy = -float((probs[probs > 0] * np.log(probs[probs > 0])).sum())
            entropy_error = max(entropy_error, abs(entropy - float(found.entropy[0, row])))
    num_draws = len(SAMPLING) * tree.num_nodes
    console.print(
        f"reductions against the host: {num_equal} of {num_draws} draws are equal (needed: "
        f"{MIN_EQUAL_DRAWS:.0%}), entropies differ by up to {entropy_error:.1e} (allowed: "
        f"{MAX_ENTROPY_ERROR})"
    )
    return num_equal >= MIN_EQUAL_DRAWS * num_draws and entropy_error <= MAX_ENTROPY_ERROR


def _compare(session: MedusaSession, num_tokens: int, console: Console) -> None:
    table = Table(title="replies; host: ms of a step outside the engine")
    table.add_column("prompt", no_wrap=True, max_width=16)
    for column in ("drafts", "tokens/s", "a step", "equal", "host"):
        table.add_column(column, no_wrap=True)
    for prompt in PROMPTS:
        expected: list[int] | None = None
        for drafts, options in _ways(num_tokens).items():
            session.generate(prompt, replace(options, max_new_tokens=8))
            reply = session.generate(prompt, options)
            expected, stats = expected or reply.token_ids, reply.stats
            host_ms = 1e3 * (stats.decode_s - stats.engine_s) / len(stats.accept_lengths)
            table.add_row(
                prompt,
                drafts,
                f"{stats.tokens_per_s:.1f}",
                f"{stats.mean_accept_length:.2f}",
                f"{_num_equal(expected, reply.token_ids)} of {len(expected)}",
                f"{host_ms:.3f}",
            )
    console.print(table)


def _ways(num_tokens: int) -> dict[str, GenerationOptions]:
    """How to decode, the plain way first."""
    heads = GenerationOptions(max_new_tokens=num_tokens, ignore_eos=True, lookup_ngram=0)
    return {
        "none": replace(heads, tree=chain_tree(0)),
        "heads": heads,
        "heads, lookup": replace(heads, lookup_ngram=GenerationOptions().lookup_ngram),
    }


def _num_equal(expected: Sequence[int], found: Sequence[int]) -> int:
    """Tokens before the first difference."""
    pairs = enumerate(zip(expected, found, strict=False))
    different = (index for index, (left, right) in pairs if left != right)
    return next(different, min(len(expected), len(found)))


def _time_steps(
    session: MedusaSession,
    context: int,
    num_rounds: int,
    bandwidth: float | None,
    console: Console,
) -> None:
    capacity = session.engine.capacity
    left_out = [size for size in TREE_SIZES if context + size > capacity]
    if left_out:
        console.print(
            f"context {context} is left out from {left_out[0]} nodes on: the cache has "
            f"{capacity} rows; export with --max-length {context + TREE_SIZES[-1]}"
        )
    if left_out == list(TREE_SIZES):
        return
    size_bytes = 0 if bandwidth is None else _bytes_read(session.bundle, context)
    table = Table("nodes", "median, ms", "p90, ms", "share of bandwidth", title=f"{context} cached")
    for num_nodes in TREE_SIZES[: len(TREE_SIZES) - len(left_out)]:
        tree, tokens = chain_tree(num_nodes - 1), [[1] * num_nodes]
        median_ms, p90_ms = _timed(
            partial(session.engine.verify, tokens, tree, [context]), num_rounds
        )
        share = "-" if bandwidth is None else f"{size_bytes / 1e6 / median_ms / bandwidth:.0%}"
        table.add_row(str(num_nodes), f"{median_ms:.2f}", f"{p90_ms:.2f}", share)
    console.print(table)


def _bytes_read(bundle: Bundle, context: int) -> int:
    """By one step: the weights that are multiplied by, and the cached keys and values."""
    try:
        import onnx_ir as ir
    except ImportError as error:
        raise MedusaError("--bandwidth needs onnx_ir: pip install onnx-ir") from error

    weights = [
        value.const_value.nbytes
        for value in ir.load(bundle.graph_path("verify")).graph.initializers.values()
        if value.const_value is not None
        and not all(use.node.op_type == "Gather" for use in value.uses())
    ]
    return sum(weights) + bundle.cache_bytes(context)


def _time_others(session: MedusaSession, num_rounds: int, console: Console) -> None:
    """Drafting, and the reductions of the bundle's tree."""
    engine, tree = session.engine, session.bundle.tree
    tokens = np.ones((1, tree.num_nodes), np.int64)
    hidden = engine.verify(tokens, tree, [0], reductions=True).hidden[:, 0].copy()
    table = Table("beside the step", "median, ms", "p90, ms")
    median_ms, p90_ms = _timed(lambda: engine.draft(hidden, [0]), num_rounds)
    table.add_row("heads", f"{median_ms:.2f}", f"{p90_ms:.2f}")
    uniforms = np.full(tokens.shape, 0.5)
    for sampling in SAMPLING:
        median_ms, p90_ms = _timed(
            partial(engine.reduce, tokens, tree, sampling, uniforms), num_rounds
        )
        name = f"reductions of {tree.num_nodes} rows, top-k {sampling.top_k}, p {sampling.top_p}"
        table.add_row(name, f"{median_ms:.2f}", f"{p90_ms:.2f}")
    console.print(table)


def _timed(call: Callable[[], object], num_rounds: int) -> tuple[float, float]:
    """Median and 90th percentile in ms."""
    times_ms = []
    for index in range(num_rounds + _WARM_UP):
        start = time.perf_counter()
        call()
        if index >= _WARM_UP:
            times_ms.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times_ms), statistics.quantiles(times_ms, n=10)[-1]


class _TokenTimes:
    """A streamer for transformers that notes when tokens come."""

    def __init__(self) -> None:
        self.times_s: list[float] = []

    def put(self, value: object) -> None:
        """Called with the prompt, then with each token, which is on the host by then."""
        self.times_s.append(time.perf_counter())

    def end(self) -> None:
        """Called after the last token."""


def _time_transformers(name: str, dtype: str, num_tokens: int, console: Console) -> None:
    """Greedy decoding by transformers: the median time between tokens of a second reply.

    Its first steps record CUDA graphs again, since each reply has a cache of its own.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model: Any = AutoModelForCausalLM.from_pretrained(name, dtype=dtype)
    model = model.to(device)
    inputs = AutoTokenizer.from_pretrained(name)(PROMPTS[0], return_tensors="pt").to(device)

    for _ in range(2):  # the first compiles
        times = _TokenTimes()
        model.generate(
            **inputs,
            max_new_tokens=num_tokens,
            min_new_tokens=num_tokens,
            do_sample=False,
            cache_implementation="static",
            streamer=times,
        )
    steps_s = [after - before for before, after in pairwise(times.times_s[1:])]
    console.print(
        f"transformers on {device} in {dtype}, static cache: "
        f"{1 / statistics.median(steps_s):.1f} tokens/s"
    )


if __name__ == "__main__":
    sys.exit(main())
