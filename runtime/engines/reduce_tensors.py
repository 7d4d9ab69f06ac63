"""What the reduce graph is fed and what it gives, in either of its forms."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medusa_trt.runtime import tensors as names
from medusa_trt.runtime.engines.base import Reductions, TokenIds
from medusa_trt.runtime.manifest import GraphSpec
from medusa_trt.runtime.options import SamplingOptions
from medusa_trt.runtime.sampling import token_from_logits
from medusa_trt.tree_configs import MedusaTree

NUM_SORTED = 1024
"""Most likely tokens among which a nucleus is looked for; a larger one is drawn on the host."""

SHARE_BITS = 31
"""Bits of a uniform number where the graph adds up integers."""

_TYPES = {"float": "float32", "double": "float64"}
_KEPT = (names.LOGITS, names.PARENT_ROWS)

OUTPUTS = {
    names.SAMPLED: "int64",
    names.COVERED: "bool",
    names.ENTROPY: "float32",
    names.CANDIDATE_LOGPROB: "float32",
}
"""Types of the outputs, each (num_rows,)."""


def parent_rows(tree: MedusaTree, num_rows: int) -> NDArray[np.int64]:
    """(num_rows,) the row of each node's parent; a root's is its own."""
    starts = np.arange(0, num_rows, tree.num_nodes)
    rows: NDArray[np.int64] = (starts[:, None] + np.maximum(tree.parents, 0)).reshape(-1)
    return rows


def empty_inputs(spec: GraphSpec, num_rows: int) -> dict[str, NDArray[Any]]:
    """Arrays of the shapes and types of what changes from step to step."""
    return {
        tensor.name: np.zeros(
            [num_rows if isinstance(size, str) else size for size in tensor.shape],
            _TYPES.get(tensor.dtype, tensor.dtype),
        )
        for tensor in spec.inputs
        if tensor.name not in _KEPT
    }


def write_inputs(
    arrays: dict[str, NDArray[Any]],
    input_ids: TokenIds,
    sampling: SamplingOptions,
    uniforms: NDArray[np.float64],
    vocab_size: int,
) -> None:
    """Writes one step's values into those of the arrays that are there; see `Engine.reduce`."""
    num_sorted = sampling.top_k or (NUM_SORTED if sampling.top_p < 1 else 1)
    is_integer = arrays[names.UNIFORMS].dtype == np.int64
    values = {
        names.CANDIDATES: np.asarray(input_ids).reshape(-1),
        names.UNIFORMS: uniforms.reshape(-1) * (1 << SHARE_BITS if is_integer else 1),
        names.TEMPERATURE: sampling.temperature,
        names.NUM_SORTED: min(num_sorted, vocab_size),
        names.CUT_TOP_K: sampling.top_k > 0,
        names.TOP_K: sampling.top_k if sampling.top_k < vocab_size else 0,
        names.TOP_P: sampling.top_p,
        names.MIN_P: sampling.min_p,
    }
    for name, value in values.items():
        if name in arrays:
            arrays[name][:] = value


def reductions_from_outputs(
    outputs: dict[str, NDArray[Any]],
    sampling: SamplingOptions,
    uniforms: NDArray[np.float64],
    logits_of: Callable[[int], NDArray[np.float32]],
) -> Reductions:
    """What `Engine.reduce` returns; rows that the graph does not cover are drawn here.

    Args:
        outputs: the graph's, overwritten.
        sampling: the distribution.
        uniforms: (B, R) in [0, 1).
        logits_of: the logits (vocab,) of one of the B × R rows.
    """
    sampled = outputs[names.SAMPLED]
    for row in np.flatnonzero(~outputs[names.COVERED]).tolist():
        sampled[row] = token_from_logits(logits_of(row), sampling, float(uniforms.flat[row]))
    return Reductions(
        sampled=sampled.reshape(uniforms.shape),
        entropy=outputs[names.ENTROPY].reshape(uniforms.shape),
        candidate_logprob=outputs[names.CANDIDATE_LOGPROB].reshape(uniforms.shape),
    )
