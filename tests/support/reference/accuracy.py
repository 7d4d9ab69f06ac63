"""Accuracy of heads and replayed decoding, token by token.

Each reply is its n token ids with the candidates of each head after each of them:
`candidates[r][i]` are head i's for the token r + 1 + i, the most likely one first.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple


class Reply(NamedTuple):
    token_ids: Sequence[int]
    candidates: Sequence[Sequence[Sequence[int]]]


def top_k_accuracy(replies: Sequence[Reply], head: int, k: int) -> float:
    """Share of the tokens that a head could have drafted which are among its first k candidates."""
    hits = [
        reply.token_ids[root + 1 + head] in reply.candidates[root][head][:k]
        for reply in replies
        for root in range(len(reply.token_ids) - 1 - head)
    ]
    return sum(hits) / len(hits) if hits else 0.0


def right_paths(reply: Reply, root: int) -> list[tuple[int, ...]]:
    """The paths whose candidates after this root are the reply's tokens, shortest first."""
    path: tuple[int, ...] = ()
    paths = []
    for head, candidates in enumerate(reply.candidates[root]):
        place = root + 1 + head
        if place >= len(reply.token_ids) or reply.token_ids[place] not in candidates:
            break
        path = (*path, list(candidates).index(reply.token_ids[place]))
        paths.append(path)
    return paths


def find_most_frequent_paths(replies: Sequence[Reply], num_paths: int) -> list[tuple[int, ...]]:
    """The paths that were right most often; of equally frequent ones the shorter comes first."""
    counts = Counter(
        path
        for reply in replies
        for root in range(len(reply.token_ids))
        for path in right_paths(reply, root)
    )
    return sorted(counts, key=lambda path: (-counts[path], len(path), path))[:num_paths]


def tokens_per_step(replies: Sequence[Reply], paths: set[tuple[int, ...]]) -> float:
    """Decodes each reply: a step adds the longest path of the tree that was right, and a token."""
    num_steps = num_tokens = 0
    for reply in replies:
        root = 0
        while root < len(reply.token_ids) - 1:
            root += 1 + len([path for path in right_paths(reply, root) if path in paths])
            num_steps += 1
        num_tokens += len(reply.token_ids) - 1
    return num_tokens / num_steps if num_steps else 1.0
