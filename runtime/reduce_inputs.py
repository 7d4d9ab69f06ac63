"""What the reduce graph is fed."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from medusa_trt.runtime import bundle as names
from medusa_trt.runtime.engine import TokenIds
from medusa_trt.runtime.options import SamplingOptions
from medusa_trt.tree_configs import MedusaTree

_NUM_SORTED = 1024
"""Most likely tokens among which a nucleus is looked for; a larger one is left to the host."""


def parent_rows(tree: MedusaTree, num_rows: int) -> NDArray[np.int64]:
    """(num_rows,) the row of each node's parent; a root's is its own."""
    starts = np.arange(0, num_rows, tree.num_nodes)
    rows: NDArray[np.int64] = (starts[:, None] + np.maximum(tree.parents, 0)).reshape(-1)
    return rows


def empty_inputs(num_rows: int) -> dict[str, NDArray[Any]]:
    """Arrays of the shapes and types of what changes from step to step."""
    return {
        names.CANDIDATES: np.zeros(num_rows, np.int64),
        names.UNIFORMS: np.zeros(num_rows, np.float64),
        names.TEMPERATURE: np.ones(1, np.float32),
        names.NUM_SORTED: np.ones(1, np.int64),
        names.CUT_TOP_K: np.zeros(1, np.bool_),
        names.TOP_P: np.ones(1, np.float32),
        names.MIN_P: np.zeros(1, np.float32),
    }


def write_inputs(
    arrays: dict[str, NDArray[Any]],
    input_ids: TokenIds,
    sampling: SamplingOptions,
    uniforms: NDArray[np.float64],
    vocab_size: int,
) -> None:
    """Writes one step's values into such arrays; see `Engine.reduce`."""
    num_sorted = sampling.top_k or (_NUM_SORTED if sampling.top_p < 1 else 1)
    values = {
        names.CANDIDATES: np.asarray(input_ids).reshape(-1),
        names.UNIFORMS: uniforms.reshape(-1),
        names.TEMPERATURE: sampling.temperature,
        names.NUM_SORTED: min(num_sorted, vocab_size),
        names.CUT_TOP_K: sampling.top_k > 0,
        names.TOP_P: sampling.top_p,
        names.MIN_P: sampling.min_p,
    }
    for name, value in values.items():
        arrays[name][:] = value
