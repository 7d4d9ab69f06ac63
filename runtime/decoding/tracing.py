"""A verify step as it can be shown: the tree with its tokens, and what became of it."""

from collections.abc import Sequence
from dataclasses import dataclass

from medusa_trt.runtime.decoding.acceptance import AcceptedTree


@dataclass(frozen=True, slots=True)
class VerifiedStep:
    """One verify step of one sequence.

    Attributes:
        tokens: the token of each of N nodes; node 0 is the root, which the step before chose.
        parents: the parent of each node; -1 for the root.
        is_copied: whether prompt lookup copied the path to each node; the heads may have drafted
            it too. Other nodes come from the heads alone. False for the root.
        accepted: the nodes of the accepted path, without the root.
        bonus_token: the model's own token after the end of this path.
    """

    tokens: list[int]
    parents: list[int]
    is_copied: list[bool]
    accepted: list[int]
    bonus_token: int


def trace_step(
    tree: AcceptedTree,
    tokens: Sequence[int],
    copied: Sequence[int],
    path: Sequence[int],
    bonus_token: int,
) -> VerifiedStep:
    """Describes a step after acceptance.

    Args:
        tree: the sequence's tree. Its last nodes have no parent where it was filled up to the size
            of other trees; they are left out.
        tokens: the tokens of its nodes.
        copied: tokens after the root that prompt lookup copied; the tree may hold some of them.
        path: the accepted nodes, from the root on.
        bonus_token: the model's own token after the end of the path.
    """
    parents, is_copied, depths = [-1], [False], [0]
    node = 0
    # The children of a node follow those of earlier nodes, so each child has the next number.
    while node < len(parents):
        start, end = tree.child_ranges[node]
        depth = depths[node]
        for child in range(start, end):
            assert child == len(parents)
            follows = node == 0 or is_copied[node]
            parents.append(node)
            depths.append(depth + 1)
            is_copied.append(follows and depth < len(copied) and tokens[child] == copied[depth])
        node += 1
    return VerifiedStep(
        list(tokens[: len(parents)]), parents, is_copied, list(path[1:]), bonus_token
    )
