"""Checks and times a bundle on a GPU.

    python benchmarks/gpu_check.py BUNDLE

1. Compares a step over a tree with its paths as plain text, a recorded step with the first one,
   and the device's draws for sampling with the host's. The exit code is 1 if these do not agree.
2. Generates replies plainly, with the heads alone, and with heads and prompt lookup. Shows tokens
   per second, tokens per step, how many tokens equal the plain ones, and the host's time in a step.
   In 16 bits, the results for one row and for several may differ in the last bit. So two replies
   may differ after a step where two tokens are almost equally likely. `--transformers MODEL` also
   times transformers with a static cache; give it the model of the bundle.
3. Times a step over 1 to 128 nodes at two context lengths, drafting and reducing. `--bandwidth`
   adds the share of the GPU's memory bandwidth that reading the weights and the cache takes.

A bundle for ort-cuda runs as it is; for TensorRT build the engines first (`medusa-trt build BUNDLE
--max-tree-nodes 128`). Step times do not need real weights, only room for context and nodes:
`medusa-export --model vicuna-7b --random-weights --target ort-cuda --max-length 4352`. A bundle for
ort-cpu runs without a GPU, to test this script.
"""

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from peer.report import find_difference
from rich.console import Console
from rich.table import Table
from script import add_bundles, add_numbers, make_parser, report_errors

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
"""Largest error of a tree's logits, relative to their spread; a wrong mask gives more than 1."""

MIN_EQUAL_DRAWS = 0.99
"""Smallest share of equal draws; the last bit of an exponential can decide between two tokens."""

MAX_ENTROPY_ERROR = 1e-3
"""Largest difference of the entropies, in nats."""

SAMPLING = (
    SamplingOptions(temperature=0.8),
    SamplingOptions(temperature=1.0, top_k=40),
    SamplingOptions(temperature=1.0, top_p=0.9, min_p=0.01),
)
_CHECKED_TREE = "mc_sim_7b_63"
_PAST = 100
_WARM_UP = 3


@report_errors
def main() -> int:
    """Runs all parts; returns 1 if the first one fails."""
    parser = make_parser(__doc__)
    add_bundles(parser)
    add_numbers(
        parser,
        ("--tokens", 128, "tokens of a reply"),
        ("--rounds", 30, "times each step is measured"),
    )
    parser.add_argument(
        "--backend", help="ort-cuda, tensorrt, tensorrt-rtx or ort-cpu (default: the bundle's)"
    )
    parser.add_argument(
        "--bandwidth", type=float, metavar="GB/S", help="memory bandwidth of the GPU; H100: 3350"
    )
    parser.add_argument(
        "--contexts", type=int, nargs="+", default=CONTEXTS, metavar="N", help="tokens in the cache"
    )
    parser.add_argument(
        "--transformers", metavar="MODEL", help="hub id or folder of a model to time"
    )
    arguments = parser.parse_args()
    console = Console()
    bundle = Bundle.open(arguments.bundle)
    with MedusaSession(bundle, backend=arguments.backend) as session:
        agrees = _check_steps(session, console) & _check_reductions(session, console)
        _compare_replies(session, arguments.tokens, console)
        for context in arguments.contexts:
            _time_steps(session, context, arguments.rounds, arguments.bandwidth, console)
        _time_draft_and_reductions(session, arguments.rounds, console)
    if arguments.transformers is not None:
        dtype = bundle.manifest.target.cache_dtype
        _time_transformers(arguments.transformers, dtype, arguments.tokens, console)
    return 0 if agrees else 1


def _check_steps(session: MedusaSession, console: Console) -> bool:
    """Compares a tree's logits with those of its paths as text, and recorded steps with others."""
    engine, tree = session.engine, load_tree(_CHECKED_TREE)
    rng = np.random.default_rng(0)
    vocab_size = session.bundle.manifest.model.vocab_size
    text = rng.integers(0, vocab_size, (1, _PAST))
    tokens = rng.integers(0, vocab_size, (1, tree.num_nodes))
    engine.verify(text, chain_tree(_PAST - 1), [0], rows=(0,))
    runs = []
    for _ in range(3):  # the engine records the second step, then replays it
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
    """Compares draws and entropies of the device with those of the host."""
    engine, tree = session.engine, load_tree(_CHECKED_TREE)
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, session.bundle.manifest.model.vocab_size, (1, tree.num_nodes))
    logits = engine.verify(tokens, tree, [0], logits=True, reductions=True).logits
    assert logits is not None
    logits = logits.copy()
    num_equal, entropy_error = 0, 0.0
    for sampling in SAMPLING:
        uniforms = rng.random((1, tree.num_nodes))
        reductions = engine.reduce(tokens, tree, [sampling], uniforms)
        flat = SamplingOptions(temperature=sampling.temperature)
        for row in range(tree.num_nodes):
            drawn = token_from_logits(logits[0, row], sampling, uniforms[0, row])
            num_equal += int(reductions.sampled[0, row] == drawn)
            probs = probabilities_from_logits(logits[0, row], flat)
            entropy = -float((probs[probs > 0] * np.log(probs[probs > 0])).sum())
            entropy_error = max(entropy_error, abs(entropy - float(reductions.entropy[0, row])))
    num_draws = len(SAMPLING) * tree.num_nodes
    console.print(
        f"reductions against the host: {num_equal} of {num_draws} draws are equal (needed: "
        f"{MIN_EQUAL_DRAWS:.0%}), entropies differ by up to {entropy_error:.1e} (allowed: "
        f"{MAX_ENTROPY_ERROR})"
    )
    return num_equal >= MIN_EQUAL_DRAWS * num_draws and entropy_error <= MAX_ENTROPY_ERROR


def _compare_replies(session: MedusaSession, num_tokens: int, console: Console) -> None:
    table = Table(title="replies; equal: to plain decoding; host: ms of a step outside the engine")
    table.add_column("prompt", no_wrap=True, max_width=16)
    for column in ("drafts", "tokens/s", "a step", "equal", "host"):
        table.add_column(column, no_wrap=True)
    for prompt in PROMPTS:
        expected: list[int] | None = None
        for drafts, options in make_ways(num_tokens).items():
            session.generate(prompt, replace(options, max_new_tokens=8))
            reply = session.generate(prompt, options)
            expected, stats = expected or reply.token_ids, reply.stats
            host_ms = 1e3 * (stats.decode_s - stats.engine_s) / len(stats.accept_lengths)
            table.add_row(
                prompt,
                drafts,
                f"{stats.tokens_per_s:.1f}",
                f"{stats.mean_accept_length:.2f}",
                f"{_count_equal(expected, reply.token_ids)} of {len(expected)}",
                f"{host_ms:.3f}",
            )
    console.print(table)


def make_ways(num_tokens: int) -> dict[str, GenerationOptions]:
    """Options of each way to decode, plain decoding first."""
    heads = GenerationOptions(max_new_tokens=num_tokens, ignore_eos=True, lookup_ngram=0)
    return {
        "none": replace(heads, tree=chain_tree(0)),
        "heads": heads,
        "heads, lookup": replace(heads, lookup_ngram=GenerationOptions().lookup_ngram),
    }


def _count_equal(expected: Sequence[int], token_ids: Sequence[int]) -> int:
    """Counts the tokens before the first difference."""
    index = find_difference(expected, token_ids)
    return len(expected) if index is None else index


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
    size_bytes = 0 if bandwidth is None else _count_bytes_read(session.bundle, context)
    table = Table("nodes", "median, ms", "p90, ms", "share of bandwidth", title=f"{context} cached")
    for num_nodes in TREE_SIZES[: len(TREE_SIZES) - len(left_out)]:
        tree, tokens = chain_tree(num_nodes - 1), [[1] * num_nodes]
        median_ms, p90_ms = _time_ms(
            partial(session.engine.verify, tokens, tree, [context]), num_rounds
        )
        share = "-" if bandwidth is None else f"{size_bytes / 1e6 / median_ms / bandwidth:.0%}"
        table.add_row(str(num_nodes), f"{median_ms:.2f}", f"{p90_ms:.2f}", share)
    console.print(table)


def _count_bytes_read(bundle: Bundle, context: int) -> int:
    """Counts what one step reads: the weights of the products, and the cached keys and values."""
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


def _time_draft_and_reductions(session: MedusaSession, num_rounds: int, console: Console) -> None:
    """Times drafting, and the reductions of the bundle's tree."""
    engine, tree = session.engine, session.bundle.tree
    tokens = np.ones((1, tree.num_nodes), np.int64)
    hidden = engine.verify(tokens, tree, [0], reductions=True).hidden[:, 0].copy()
    table = Table("beside the step", "median, ms", "p90, ms")
    if session.bundle.manifest.heads is not None:
        median_ms, p90_ms = _time_ms(lambda: engine.draft(hidden, [0]), num_rounds)
        table.add_row("heads", f"{median_ms:.2f}", f"{p90_ms:.2f}")
    uniforms = np.full(tokens.shape, 0.5)
    for sampling in SAMPLING:
        median_ms, p90_ms = _time_ms(
            partial(engine.reduce, tokens, tree, [sampling], uniforms), num_rounds
        )
        name = f"reductions of {tree.num_nodes} rows, top-k {sampling.top_k}, p {sampling.top_p}"
        table.add_row(name, f"{median_ms:.2f}", f"{p90_ms:.2f}")
    console.print(table)


def _time_ms(call: Callable[[], object], num_rounds: int) -> tuple[float, float]:
    """Times a call: median and 90th percentile in milliseconds."""
    times_ms = []
    for index in range(num_rounds + _WARM_UP):
        start = time.perf_counter()
        call()
        if index >= _WARM_UP:
            times_ms.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times_ms), statistics.quantiles(times_ms, n=10)[-1]


class _TokenTimes:
    """A streamer for transformers that records the time of each token."""

    def __init__(self) -> None:
        self.times_s: list[float] = []

    def put(self, value: object) -> None:
        """Receives the prompt, then each token once it is on the host."""
        self.times_s.append(time.perf_counter())

    def end(self) -> None:
        """Does nothing after the last token."""


def _time_transformers(name: str, dtype: str, num_tokens: int, console: Console) -> None:
    """Times greedy decoding by transformers: the median between the tokens of a second reply.

    The first steps of each reply record CUDA graphs, because each reply has its own cache.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model: Any = AutoModelForCausalLM.from_pretrained(name, dtype=dtype)
    model = model.to(device)
    inputs = AutoTokenizer.from_pretrained(name)(PROMPTS[0], return_tensors="pt").to(device)

    for _ in range(2):  # the first reply compiles the model
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
