"""Arrays of the reduce graph: it turns logits into a drawn token, entropy and log-probability."""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medusa_trt.runtime import tensors as names
from medusa_trt.runtime.engines.base import Reductions, StepTree
from medusa_trt.runtime.manifest import GraphSpec
from medusa_trt.runtime.options import SamplingOptions
from medusa_trt.runtime.sampling import token_from_logits

NUM_SORTED = 1024
"""Number of sorted tokens in the graph; from a larger top-p nucleus, the host draws the token."""

SHARE_BITS = 31
"""Number of bits of a uniform number in the integer form of the graph."""

_TYPES = {"float": "float32", "double": "float64"}
OUTPUTS = {
    names.SAMPLED: "int64",
    names.COVERED: "bool",
    names.ENTROPY: "float32",
    names.CANDIDATE_LOGPROB: "float32",
}
"""Type of each output, whose shape is (num_rows,)."""


SamplingGroup = tuple[SamplingOptions, slice]
"""A distribution, and the neighbouring sequences of a step that draw from it."""


def split_by_sampling(samplings: Sequence[SamplingOptions]) -> Iterator[SamplingGroup]:
    """Groups neighbouring sequences with equal distributions, without those of temperature 0.

    The graph takes one distribution in a run, so each group is a run. The seed makes no difference.
    """
    start = 0
    for _, group in groupby(samplings, key=_key_of_distribution):
        members = list(group)
        if members[0].temperature > 0:
            yield members[0], slice(start, start + len(members))
        start += len(members)


def _key_of_distribution(sampling: SamplingOptions) -> tuple[float, ...]:
    return sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p


def find_parent_rows(tree: StepTree, sequences: slice, num_nodes: int) -> NDArray[np.int64]:
    """Row of each node's parent, (B, R) for these B sequences; a root is its own parent."""
    parents = tree.parents[sequences] if tree.parents.ndim == 2 else tree.parents
    starts = np.arange(sequences.stop - sequences.start) * num_nodes
    return starts[:, None] + np.maximum(parents, 0)


def allocate_inputs(spec: GraphSpec, num_rows: int) -> dict[str, NDArray[Any]]:
    """Allocates arrays for all inputs of the graph except the logits."""
    return {
        tensor.name: np.zeros(
            [num_rows if isinstance(size, str) else size for size in tensor.shape],
            _TYPES.get(tensor.dtype, tensor.dtype),
        )
        for tensor in spec.inputs
        if tensor.name != names.LOGITS
    }


def write_inputs(
    arrays: dict[str, NDArray[Any]],
    input_ids: NDArray[np.int64],
    parent_rows: NDArray[np.int64],
    sampling: SamplingOptions,
    uniforms: NDArray[np.float64],
    vocab_size: int,
) -> None:
    """Writes one run's values into the arrays; a form of the graph may lack some inputs.

    See `Engine.reduce` and `find_parent_rows` for the arguments.
    """
    num_sorted = sampling.top_k or (NUM_SORTED if sampling.top_p < 1 else 1)
    is_integer = arrays[names.UNIFORMS].dtype == np.int64
    values = {
        names.CANDIDATES: input_ids.reshape(-1),
        names.PARENT_ROWS: parent_rows.reshape(-1),
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


def copy_outputs(
    reductions: Reductions,
    group: SamplingGroup,
    outputs: dict[str, NDArray[Any]],
    uniforms: NDArray[np.float64],
    read_logits: Callable[[int], NDArray[np.float32]],
) -> None:
    """Copies the outputs of one run; draws the tokens of rows that the graph did not cover.

    Args:
        reductions: results of all sequences of the step, written here for those of `group`.
        group: the sequences of this run, and their distribution.
        outputs: outputs of the graph; overwritten.
        uniforms: (B, R) of these sequences, in [0, 1).
        read_logits: returns the logits (vocab,) of one of the B × R rows of this run.
    """
    sampling, sequences = group
    sampled = outputs[names.SAMPLED]
    for row in np.flatnonzero(~outputs[names.COVERED]).tolist():
        sampled[row] = token_from_logits(read_logits(row), sampling, float(uniforms.flat[row]))
    reductions.sampled[sequences] = sampled.reshape(uniforms.shape)
    reductions.entropy[sequences] = outputs[names.ENTROPY].reshape(uniforms.shape)
    reductions.candidate_logprob[sequences] = outputs[names.CANDIDATE_LOGPROB].reshape(
        uniforms.shape
    )


def make_empty_reductions(shape: tuple[int, ...]) -> Reductions:
    """Makes results of shape (B, R) to be written by `copy_outputs`."""
    return Reductions(
        np.zeros(shape, np.int64), np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    )
