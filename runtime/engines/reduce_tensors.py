"""Inputs and outputs of the reduce graph, in all of its forms."""

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
"""Number of sorted tokens in the graph; from a larger top-p nucleus, the host draws the token."""

SHARE_BITS = 31
"""Number of bits of a uniform number in the integer form of the graph."""

_TYPES = {"float": "float32", "double": "float64"}
_CONSTANT_INPUTS = (names.LOGITS, names.PARENT_ROWS)
"""Inputs that are bound once for a tree."""

OUTPUTS = {
    names.SAMPLED: "int64",
    names.COVERED: "bool",
    names.ENTROPY: "float32",
    names.CANDIDATE_LOGPROB: "float32",
}
"""Type of each output, whose shape is (num_rows,)."""


def parent_rows(tree: MedusaTree, num_rows: int) -> NDArray[np.int64]:
    """Row of each node's parent, (num_rows,); a root is its own parent."""
    starts = np.arange(0, num_rows, tree.num_nodes)
    rows: NDArray[np.int64] = (starts[:, None] + np.maximum(tree.parents, 0)).reshape(-1)
    return rows


def allocate_inputs(spec: GraphSpec, num_rows: int) -> dict[str, NDArray[Any]]:
    """Allocates arrays for the inputs that change from step to step."""
    return {
        tensor.name: np.zeros(
            [num_rows if isinstance(size, str) else size for size in tensor.shape],
            _TYPES.get(tensor.dtype, tensor.dtype),
        )
        for tensor in spec.inputs
        if tensor.name not in _CONSTANT_INPUTS
    }


def write_inputs(
    arrays: dict[str, NDArray[Any]],
    input_ids: TokenIds,
    sampling: SamplingOptions,
    uniforms: NDArray[np.float64],
    vocab_size: int,
) -> None:
    """Writes one step's values into the arrays; a form of the graph may lack some inputs.

    See `Engine.reduce` for the arguments.
    """
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
    read_logits: Callable[[int], NDArray[np.float32]],
) -> Reductions:
    """Makes the result of `Engine.reduce`; draws the tokens of rows that the graph did not cover.

    Args:
        outputs: outputs of the graph; overwritten.
        sampling: the distribution.
        uniforms: (B, R) in [0, 1).
        read_logits: returns the logits (vocab,) of one of the B × R rows.
    """
    sampled = outputs[names.SAMPLED]
    for row in np.flatnonzero(~outputs[names.COVERED]).tolist():
        sampled[row] = token_from_logits(read_logits(row), sampling, float(uniforms.flat[row]))
    return Reductions(
        sampled=sampled.reshape(uniforms.shape),
        entropy=outputs[names.ENTROPY].reshape(uniforms.shape),
        candidate_logprob=outputs[names.CANDIDATE_LOGPROB].reshape(uniforms.shape),
    )
