"""What the paper's `generate_medusa_buffers` defines, as slowly and plainly as possible.

Source: Cai et al. 2024, "Medusa", section 2.1.2, and FasterDecoding/Medusa, medusa/model/utils.py.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeBuffers:
    """The four buffers for N nodes, the root included.

    attn_mask: (N, N) bool; tree_indices: (N,) int64; position_ids: (N,) int64;
    retrieve_indices: (num_paths, max_depth + 1) int64, padded with -1.
    """

    attn_mask: NDArray[np.bool_]
    tree_indices: NDArray[np.int64]
    position_ids: NDArray[np.int64]
    retrieve_indices: NDArray[np.int64]


def tree_buffers(choices: list[tuple[int, ...]], top_k: int) -> TreeBuffers:
    """Computes every buffer from the definition; `choices` is a valid tree in any order."""
    ordered = sorted(choices, key=lambda path: (len(path), path))
    return TreeBuffers(
        attn_mask=_attn_mask(ordered),
        tree_indices=np.array([0] + [path[-1] + top_k * (len(path) - 1) + 1 for path in ordered]),
        position_ids=np.array([0] + [len(path) for path in ordered]),
        retrieve_indices=_retrieve_indices(ordered),
    )


def _attn_mask(ordered: list[tuple[int, ...]]) -> NDArray[np.bool_]:
    mask = np.eye(len(ordered) + 1, dtype=bool)
    mask[:, 0] = True
    for i, path in enumerate(ordered):
        for j, other in enumerate(ordered):
            if path[: len(other)] == other:
                mask[i + 1, j + 1] = True
    return mask


def _retrieve_indices(ordered: list[tuple[int, ...]]) -> NDArray[np.int64]:
    covered: list[tuple[int, ...]] = []
    rows: list[list[int]] = []
    for path in reversed(ordered):
        if path in covered:
            continue
        prefixes = [path[:length] for length in range(1, len(path) + 1)]
        covered.extend(prefixes)
        rows.append([0] + [ordered.index(prefix) + 1 for prefix in prefixes])
    if not rows:  # The paper has no empty tree; its only path is the root alone.
        rows = [[0]]
    width = max(len(row) for row in rows)
    return np.array([row + [-1] * (width - len(row)) for row in rows])
