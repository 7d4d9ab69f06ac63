"""Checks that an engine computes what the host does: trees against text, draws against the host's.

The speed is measured by `medusa-trt bench` and `medusa-trt calibrate latency`.
"""

from dataclasses import dataclass

import numpy as np

from medusa_trt.runtime.options import SamplingOptions
from medusa_trt.runtime.sampling import probabilities_from_logits, token_from_logits
from medusa_trt.runtime.session import MedusaSession
from medusa_trt.tree_configs import chain_tree, load_tree

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
CHECKED_TREE = "mc_sim_7b_63"
_PAST = 100


@dataclass(frozen=True, slots=True)
class StepCheck:
    """The result of a check: whether it passed, and a line that says how far it was."""

    agrees: bool
    text: str


def check_trees(session: MedusaSession) -> StepCheck:
    """Compares a tree's logits with those of its paths as text, and recorded steps with others."""
    engine, tree = session.engine, load_tree(CHECKED_TREE)
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
    return StepCheck(
        max(errors) <= MAX_RELATIVE_ERROR and repeats,
        f"tree against text: relative error up to {max(errors):.4f} on {len(errors)} paths "
        f"(allowed: {MAX_RELATIVE_ERROR}); recorded steps repeat the first one: "
        f"{'yes' if repeats else 'NO'}",
    )


def check_reductions(session: MedusaSession) -> StepCheck:
    """Compares draws and entropies of the device with those of the host."""
    engine, tree = session.engine, load_tree(CHECKED_TREE)
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
    return StepCheck(
        num_equal >= MIN_EQUAL_DRAWS * num_draws and entropy_error <= MAX_ENTROPY_ERROR,
        f"reductions against the host: {num_equal} of {num_draws} draws are equal (needed: "
        f"{MIN_EQUAL_DRAWS:.0%}), entropies differ by up to {entropy_error:.1e} (allowed: "
        f"{MAX_ENTROPY_ERROR})",
    )
