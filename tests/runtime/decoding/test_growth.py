"""Trees grown at each step, against every path listed by the definition."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.reference.draft_trees import Path, shares_of_paths

from medusa_trt.runtime.decoding.growth import Growth, TreeGrower
from medusa_trt.runtime.decoding.step_times import StepTimes, TimedPoint
from medusa_trt.runtime.engines.base import Drafts

NUM_HEADS, TOP_K, MAX_NODES = 3, 3, 12


def make_drafts(seed: int, count: int) -> Drafts:
    rng = np.random.default_rng(seed)
    ids = np.stack(
        [[rng.permutation(6)[:TOP_K] for _ in range(NUM_HEADS)] for _ in range(count)]
    ).astype(np.int64)
    shares = -np.sort(-rng.dirichlet([0.7] * (TOP_K + 1), (count, NUM_HEADS))[..., :TOP_K])
    return Drafts(ids, np.log(shares + 1e-9).astype(np.float32))


def times_of(ms_by_rows: dict[int, float]) -> StepTimes:
    return StepTimes([TimedPoint(rows, ms, 0) for rows, ms in ms_by_rows.items()])


def grow(
    drafts: Drafts | None,
    copied: list[list[int]],
    times: StepTimes,
    *,
    share: float = 0.6,
    later: float | None = None,
    least: int = 1,
    most: int = MAX_NODES,
) -> Growth:
    count = len(copied)
    grower = TreeGrower(batch_size=count, num_heads=NUM_HEADS, top_k=TOP_K, max_nodes=MAX_NODES)
    return grower.grow(
        [99] * count,
        drafts,
        copied,
        [share] * count,
        [share if later is None else later] * count,
        [1.0] * count,
        times,
        min_nodes=least,
        max_nodes=most,
        past=0,
    )


def paths_of(growth: Growth, index: int) -> list[Path]:
    """Path of each node, and checks of all arrays that describe the tree."""
    tree, batch, tokens = growth.trees[index], growth.batch, growth.tokens[index]
    parents = batch.parents[index].tolist()
    paths: list[Path] = [()]
    for node in range(1, batch.num_nodes):
        assert 0 <= parents[node] < node
        paths.append((*paths[parents[node]], tokens[node]))
    for node, (start, end) in enumerate(tree.child_ranges):
        children = [child for child in range(1, batch.num_nodes) if parents[child] == node]
        if node == 0:  # Unread nodes fill up behind the children of the root.
            children = children[: end - start]
        assert list(range(start, end)) == children
    for node in range(batch.num_nodes):
        seen = {node}
        while parents[node] >= 0 and node > 0:
            node = parents[node]
            seen.add(node)
        last = max(seen)
        assert set(np.flatnonzero(batch.additive_mask[index, last] == 0).tolist()) == seen
        assert batch.position_offsets[index, last] == len(seen) - 1
    return paths


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    copied=st.lists(st.lists(st.integers(0, 5), max_size=5), min_size=1, max_size=3),
    size=st.integers(1, MAX_NODES),
    has_heads=st.booleans(),
)
def test_the_likeliest_paths_are_taken_first(
    seed: int, copied: list[list[int]], size: int, has_heads: bool
) -> None:
    drafts = make_drafts(seed, len(copied)) if has_heads else None
    growth = grow(drafts, copied, StepTimes(), later=0.8, least=size, most=size)
    assert growth.batch.num_nodes == size
    for index, tokens in enumerate(copied):
        ids = np.zeros((0, 0), np.int64) if drafts is None else drafts.ids[index]
        logprobs = np.zeros((0, 0), np.float32)
        if drafts is not None and drafts.logprobs is not None:
            logprobs = drafts.logprobs[index]
        shares = shares_of_paths(ids, logprobs, tokens[:size], 0.6, 0.8)
        paths = paths_of(growth, index)
        grown = paths[1 : min(size, len(shares) + 1)]
        assert len({*grown}) == len(grown)
        taken = sorted((shares[path] for path in grown), reverse=True)
        assert np.allclose(taken, sorted(shares.values(), reverse=True)[: len(grown)], rtol=1e-4)
        assert abs(growth.gains[index] - sum(taken)) < 1e-4


def test_the_number_of_nodes_has_the_most_tokens_per_second() -> None:
    drafts = make_drafts(3, 1)
    for ms_by_rows in ({1: 10.0, 12: 11.0}, {1: 10.0, 12: 30.0}, {1: 10.0, 12: 300.0}):
        times = times_of(ms_by_rows)
        rates = {}
        for size in range(1, MAX_NODES + 1):
            forced = grow(drafts, [[]], times, least=size, most=size)
            rates[size] = forced.expected / forced.step_ms
        chosen = grow(drafts, [[]], times).batch.num_nodes
        assert rates[chosen] == max(rates.values())
    assert chosen == 1


def test_trees_shrink_as_the_batch_grows() -> None:
    times = times_of({1: 10.0, 4: 10.2, 8: 15.0, 16: 60.0})
    sizes = []
    for count in (1, 2, 4):
        ids = np.tile(np.arange(TOP_K), (count, NUM_HEADS, 1))
        drafts = Drafts(ids, np.full(ids.shape, np.log(0.3), np.float32))
        sizes.append(grow(drafts, [[]] * count, times).batch.num_nodes)
    assert sizes[0] > sizes[1] > sizes[2]


@pytest.mark.parametrize("share", [0.2, 0.9])
def test_a_copied_chain_stands_beside_the_heads_nodes(share: float) -> None:
    drafts = make_drafts(5, 1)
    copied = [7, 8, 9, 7, 8]
    growth = grow(drafts, [copied], StepTimes(), share=share, least=8, most=8)
    paths = paths_of(growth, 0)[1:]
    num_copied = sum(path == tuple(copied[: len(path)]) for path in paths)
    assert 0 < num_copied < len(paths)
    assert num_copied == (5 if share == 0.9 else num_copied)
