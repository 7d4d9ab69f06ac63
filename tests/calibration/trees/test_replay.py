"""Replay against decoding step by step."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from support.strategies import medusa_trees

from medusa_trt.calibration.trees.replay import (
    ABSENT,
    UNKNOWN,
    RankTable,
    replay,
)
from medusa_trt.tree_configs import MedusaTree


@settings(max_examples=60, deadline=None)
@given(
    medusa_trees(max_depth=3, max_child=4),
    st.lists(
        st.lists(st.tuples(*[st.integers(ABSENT, 4)] * 3), max_size=12), min_size=1, max_size=4
    ),
)
def test_replay_is_decoding(tree: MedusaTree, replies: list[list[tuple[int, int, int]]]) -> None:
    arrays = [np.array(reply, np.int16).reshape(-1, 3) for reply in replies]
    for array in arrays:
        for head in range(3):
            array[max(0, len(array) - head) :, head] = UNKNOWN
    all_steps = replay(tree, RankTable.from_replies(arrays))
    for array, steps in zip(arrays, all_steps, strict=True):
        position = expected = 0
        while position < len(array):
            paths = [tuple(array[position, :depth].tolist()) for depth in range(4)]
            accepted = [path for path in paths if path in tree.medusa_choices]
            position += 1 + max(map(len, accepted), default=0)
            expected += 1
        assert steps == expected
