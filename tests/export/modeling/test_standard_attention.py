"""The masks that forms of standard operators make, against loops."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.bundle_steps import random_tree

from medusa_trt.export.modeling.attention_inputs import AttentionInputs
from medusa_trt.export.modeling.device_attention import (
    CudaAttention,
    DecomposedAttention,
    DeviceAttention,
)
from medusa_trt.export.modeling.standard_attention import ScatterAttention, StandardAttention
from medusa_trt.tree_configs import MedusaTree

MAX_LENGTH, NUM_NODES, NUM_READ = 32, 14, 30
PAST = (3, 14)


def make_form(form: type[StandardAttention], trees: list[MedusaTree]) -> StandardAttention:
    """A step of two sequences with cached rows, which have one tree where the form takes no two."""
    masks = [torch.from_numpy(tree.additive_mask.copy()) for tree in trees]
    depths = [torch.from_numpy(tree.position_offsets.copy()) for tree in trees]
    several = form.takes_tree_per_sequence
    return form(
        AttentionInputs(
            cache=[torch.zeros(2, 1, MAX_LENGTH, 4)] * 2,
            tables=[(torch.ones(MAX_LENGTH, 2), torch.zeros(MAX_LENGTH, 2))],
            chunks=[None],
            past_length=torch.tensor(PAST),
            position_offsets=torch.stack(depths) if several else depths[0],
            tree_mask=torch.stack(masks) if several else masks[0],
            max_length=MAX_LENGTH,
            cache_positions=torch.arange(NUM_READ) if form.reads_cache_positions else None,
        )
    )


def list_visible(
    tree: MedusaTree, past: int, num_rows: int, window: int, chunk: int
) -> NDArray[np.bool_]:
    """Which rows of the cache (T, L) each node sees: earlier text, and its ancestors."""
    visible = np.zeros((tree.num_nodes, num_rows), np.bool_)
    for node in range(tree.num_nodes):
        for row in range(num_rows):
            if row < past:
                is_seen, position = True, row
            elif row < past + tree.num_nodes:
                is_seen = bool(tree.attn_mask[node, row - past])
                position = past + int(tree.position_offsets[row - past])
            else:
                is_seen, position = False, row
            own = past + int(tree.position_offsets[node])
            is_reached = own - position < window and own // chunk == position // chunk
            visible[node, row] = is_seen and is_reached
    return visible


@pytest.mark.parametrize(
    "form", [ScatterAttention, DeviceAttention, CudaAttention, DecomposedAttention]
)
@pytest.mark.parametrize(
    ("window", "chunk"), [(None, None), (2, None), (6, None), (None, 4), (6, 9)]
)
def test_a_node_sees_the_text_before_it_and_its_ancestors(
    form: type[StandardAttention], window: int | None, chunk: int | None
) -> None:
    rng = np.random.default_rng(0)
    trees = [random_tree(rng, NUM_NODES, min_depth=depth) for depth in (5, 2)]
    if not form.takes_tree_per_sequence:
        trees[1] = trees[0]
    found = make_form(form, trees).mask.within(window, chunk).numpy()
    num_rows = NUM_READ if form.reads_cache_positions else max(PAST) + NUM_NODES
    assert found.shape == (2, 1, NUM_NODES, num_rows)
    for sequence, tree in enumerate(trees):
        expected = list_visible(tree, PAST[sequence], num_rows, window or 99, chunk or 99)
        assert np.array_equal(found[sequence, 0] == 0, expected)
        assert (found[sequence, 0][~expected] <= form.masked).all()
    assert np.isfinite(found).all()
