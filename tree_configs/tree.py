"""The draft tree: validated paths, and the index arrays that one decode step needs.

A node is named by the path to it: `(2, 0)` is the best candidate of head 1 below the third best
candidate of head 0. The root `()` is the last decided token; it is node 0 and never listed.
Nodes are numbered by (depth, path), as in the paper's code (Cai et al. 2024, "Medusa", section
2.1.2; `generate_medusa_buffers` in FasterDecoding/Medusa).
"""

import json
import reprlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medusa_trt.errors import TreeError

# Padding of `retrieve_indices`. The paper's code pads with -1, which silently reads the last node
# and accepts wrong tokens. This value is out of range for any array, even after a cache length is
# added or after a cast to int32. So numpy raises an error when padding is read by mistake.
PAD_NODE = 2**31 - 1

# A step needs a (num_nodes, num_nodes) mask. A tree with more nodes is probably a typing mistake.
MAX_NODES = 4096

# Value of the additive mask where a node does not see another: the least float32.
MASKED = float(np.finfo(np.float32).min)

HEADS_TREE_FILE = "medusa_tree.json"
"""Name of the file, beside the weights of heads, with the tree that was measured with them."""

# No vocabulary is as large, and `tree_indices` stays far below the limit of int64.
_MAX_CHILD = 2**31 - 1

_JSON_KEYS = ("medusa_choices", "source")

Node = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MedusaTree:
    """A draft tree of `num_nodes` = N nodes, the root included. Make it with `from_choices`.

    Two trees are equal when their `medusa_choices` are. All arrays are read-only.

    Attributes:
        medusa_choices: the nodes without the root, sorted by (length, path).
        name: name of the tree in messages.
        parents: (N,) int64, the parent of each node; -1 for the root.
        attn_mask: (N, N) bool, true in row i at node i and at its ancestors.
        position_offsets: (N,) int64, depth of each node, to be added to the root's position.
        retrieve_indices: (num_paths, max_depth + 1) int64, one row for each leaf: the nodes from
            the root to the leaf, then `PAD_NODE`. Rows are ordered as in the paper's code, deepest
            leaves first.
        child_ranges: first child of each node, and the node after its last child; the children of a
            node have consecutive numbers.
        path_lengths: (num_paths,) int64, number of nodes in each row, the root included. The
            remaining entries of `retrieve_indices` are padding and must not be read.
    """

    medusa_choices: tuple[Node, ...]
    name: str = field(default="custom", compare=False)
    parents: NDArray[np.int64] = field(init=False, repr=False, compare=False)
    attn_mask: NDArray[np.bool_] = field(init=False, repr=False, compare=False)
    position_offsets: NDArray[np.int64] = field(init=False, repr=False, compare=False)
    retrieve_indices: NDArray[np.int64] = field(init=False, repr=False, compare=False)
    path_lengths: NDArray[np.int64] = field(init=False, repr=False, compare=False)
    child_ranges: tuple[tuple[int, int], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        choices = _sort_choices(self.medusa_choices)
        object.__setattr__(self, "medusa_choices", choices)
        parents = _parents_from_choices(choices)
        attn_mask = _attn_mask_from_parents(parents)
        retrieve_indices, path_lengths = _paths_from_mask(attn_mask, parents)
        arrays = {
            "parents": parents,
            "attn_mask": attn_mask,
            "position_offsets": np.array([0, *map(len, choices)], dtype=np.int64),
            "retrieve_indices": retrieve_indices,
            "path_lengths": path_lengths,
        }
        for attribute, array in arrays.items():
            array.setflags(write=False)
            object.__setattr__(self, attribute, array)
        nodes = np.arange(len(parents))
        starts = np.searchsorted(parents, nodes, side="left")
        ends = np.searchsorted(parents, nodes, side="right")
        ranges = tuple(zip(starts.tolist(), ends.tolist(), strict=True))
        object.__setattr__(self, "child_ranges", ranges)

    @classmethod
    def from_choices(
        cls, choices: Iterable[Sequence[int]], *, name: str = "custom"
    ) -> "MedusaTree":
        """Makes a tree from its nodes in any order; without nodes it means plain decoding.

        Args:
            choices: the path of each node but the root, as Python or numpy integers from 0.
            name: name of the tree in messages.

        Raises:
            TreeError: a path is empty, is listed twice, lacks its parent or holds other values.
        """
        return cls(medusa_choices=_sort_choices(choices), name=name)

    @classmethod
    def from_json(cls, text: str, *, name: str = "custom") -> "MedusaTree":
        """Makes a tree from `{"medusa_choices": [[0], [0, 0], ...]}` or from the list alone.

        `"source"` may say where the choices come from; it is not kept.

        Raises:
            TreeError: the text is not JSON, has another structure or holds no valid tree.
        """
        return cls.from_choices(_choices_from_json(text), name=name)

    @classmethod
    def load(cls, path: str | Path, *, name: str | None = None) -> "MedusaTree":
        """Reads a tree file as `from_json` does; the name defaults to the file's stem.

        Raises:
            TreeError: the file cannot be read or holds no valid tree; the message names it.
        """
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise TreeError(f"cannot read tree file {str(path)!r}: {reason}") from error
        try:
            return cls.from_json(text, name=path.stem if name is None else name)
        except TreeError as error:
            raise TreeError(f"bad tree file {str(path)!r}: {error}") from error

    def to_json(self) -> str:
        """Returns `{"medusa_choices": ...}` on one line, which `from_json` reads."""
        return json.dumps({"medusa_choices": self.medusa_choices})

    def save(self, path: str | Path) -> None:
        """Writes `to_json` to a file.

        Raises:
            TreeError: the file cannot be written.
        """
        try:
            Path(path).write_text(self.to_json() + "\n", encoding="utf-8")
        except OSError as error:
            raise TreeError(f"cannot write tree file {str(path)!r}: {error.strerror}") from error

    @property
    def additive_mask(self) -> NDArray[np.float32]:
        """`attn_mask` as the graphs take it, (N, N): 0 where it is true, and `MASKED` elsewhere."""
        return np.where(self.attn_mask, np.float32(0), np.float32(MASKED))

    @property
    def num_nodes(self) -> int:
        """Number of nodes with the root: the tokens that one verify step feeds to the backbone."""
        return len(self.medusa_choices) + 1

    @property
    def max_depth(self) -> int:
        """Length of the longest path: the heads that the tree needs; 0 for plain decoding."""
        return len(self.medusa_choices[-1]) if self.medusa_choices else 0

    @property
    def top_k(self) -> int:
        """Candidates that a head must offer: the largest child index + 1; 0 for plain decoding."""
        return max((max(node) + 1 for node in self.medusa_choices), default=0)

    def tree_indices(self, top_k: int) -> NDArray[np.int64]:
        """Index of each node's token in `[root, head 0's top_k, head 1's top_k, ...]`.

        For top_k = 10 these are the `tree_indices` of the paper's code.

        Args:
            top_k: candidates per head in that list; at least `self.top_k`.

        Returns:
            (N,) int64 indices into a list of 1 + num_heads * top_k tokens; 0 for the root.

        Raises:
            TreeError: a child index is `top_k` or more and would read the next head's candidates.
        """
        self._check_top_k(top_k)
        indices = (node[-1] + top_k * (len(node) - 1) + 1 for node in self.medusa_choices)
        return np.array([0, *indices], dtype=np.int64)

    def check(self, num_heads: int, top_k: int) -> None:
        """Checks that `num_heads` heads with `top_k` candidates each can fill the tree.

        Raises:
            TreeError: a node is deeper than the number of heads, or a child index is too large.
        """
        for node in self.medusa_choices:
            if len(node) > num_heads:
                raise TreeError(
                    f"tree {self.name!r}: node {list(node)} has depth {len(node)} but there are "
                    f"{num_heads} heads; use a shallower tree or more heads"
                )
        self._check_top_k(top_k)

    def check_without_heads(self) -> None:
        """Checks that prompt lookup alone can fill the tree.

        Raises:
            TreeError: the tree branches.
        """
        if self.top_k > 1:
            raise TreeError(
                f"tree {self.name!r} branches, and there are no heads: use a chain such as "
                "chain-5, which prompt lookup fills, or plain"
            )

    def _check_top_k(self, top_k: int) -> None:
        for node in self.medusa_choices:
            if max(node) >= top_k:
                raise TreeError(
                    f"tree {self.name!r}: node {list(node)} has child index {max(node)} but each "
                    f"head offers {top_k} candidates; use a narrower tree or a top-k of at least "
                    f"{self.top_k}"
                )


def _node_from_path(path: object) -> Node:
    if not isinstance(path, Sequence | np.ndarray) or isinstance(path, str | bytes):
        raise TreeError(
            f"node {reprlib.repr(path)} is not a path; write each node as a list of child "
            "indices such as [0, 1]"
        )
    for child in path:
        if isinstance(child, bool) or not isinstance(child, int | np.integer):
            problem = "which is not an integer"
        elif child < 0:
            problem = "which is negative"
        elif child > _MAX_CHILD:
            problem = "which is too large"
        else:
            continue
        raise TreeError(
            f"node {reprlib.repr(list(path))} has child index {reprlib.repr(child)}, {problem}; "
            "child indices count a head's candidates from 0"
        )
    return tuple(int(child) for child in path)


def _sort_choices(choices: Iterable[Sequence[int]]) -> tuple[Node, ...]:
    nodes: set[Node] = set()
    for path in choices:
        node = _node_from_path(path)
        if not node:
            raise TreeError("node [] is the root, which is implied; remove it from medusa_choices")
        if node in nodes:
            raise TreeError(f"node {list(node)} is listed twice; remove one")
        nodes.add(node)
        if len(nodes) >= MAX_NODES:
            raise TreeError(f"the tree has more than {MAX_NODES} nodes; use a smaller tree")
    ordered = tuple(sorted(nodes, key=lambda node: (len(node), node)))
    for node in ordered:
        if len(node) > 1 and node[:-1] not in nodes:
            raise TreeError(
                f"node {list(node)} has no parent; add {list(node[:-1])} to medusa_choices"
            )
    return ordered


def _parents_from_choices(choices: tuple[Node, ...]) -> NDArray[np.int64]:
    index_of = {node: index for index, node in enumerate(((), *choices))}
    return np.array([-1, *(index_of[node[:-1]] for node in choices)], dtype=np.int64)


def _attn_mask_from_parents(parents: NDArray[np.int64]) -> NDArray[np.bool_]:
    attn_mask = np.eye(len(parents), dtype=np.bool_)
    for node in range(1, len(parents)):
        attn_mask[node] |= attn_mask[parents[node]]
    return attn_mask


def _paths_from_mask(
    attn_mask: NDArray[np.bool_], parents: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns `retrieve_indices` and `path_lengths`.

    The paper's code takes the nodes from the last to the first and skips those on a path that it
    has already. These are all nodes with children, because children have larger numbers. So the
    leaves remain.
    """
    leaves = np.setdiff1d(np.arange(len(parents)), parents)[::-1]
    path_lengths = attn_mask[leaves].sum(axis=1, dtype=np.int64)
    retrieve_indices = np.full((len(leaves), path_lengths.max()), PAD_NODE, dtype=np.int64)
    for row, leaf in enumerate(leaves):
        # Ancestors have smaller numbers than their descendants, so this goes from the root down.
        retrieve_indices[row, : path_lengths[row]] = np.flatnonzero(attn_mask[leaf])
    return retrieve_indices, path_lengths


def _choices_from_json(text: str) -> list[Sequence[int]]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TreeError(f"not valid JSON: {error}") from error
    if isinstance(content, dict):
        unknown = sorted(content.keys() - set(_JSON_KEYS))
        if unknown:
            raise TreeError(
                f"unknown key {reprlib.repr(unknown[0])}; the keys are {', '.join(_JSON_KEYS)}"
            )
        content = content.get("medusa_choices")
    if not isinstance(content, list):
        raise TreeError('expected {"medusa_choices": [[0], [0, 0], ...]} or the bare list')
    return content
