"""Positions and masks of a step, against loops."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from medusa_trt.export.modeling.attention_inputs import AttentionInputs, AttentionMask

MAX_LENGTH = 20
NUM_NODES, NUM_KEYS = 4, 9


SIZES = st.sampled_from([None, 1, 2, 5, 19, 20, 30])


@given(st.integers(0, 10**6), SIZES, SIZES)
def test_windows_and_chunks_hide_what_a_layer_does_not_reach(
    seed: int, window: int | None, chunk: int | None
) -> None:
    generator = torch.Generator().manual_seed(seed)
    whole = torch.randint(-3, 1, (2, 1, NUM_NODES, NUM_KEYS), generator=generator).float()
    positions = torch.randint(0, MAX_LENGTH, (2, NUM_NODES), generator=generator)
    key_positions = torch.randint(0, MAX_LENGTH, (2, NUM_KEYS), generator=generator)
    mask = AttentionMask(whole, positions, key_positions, MAX_LENGTH, masked=-50.0)
    expected = whole.clone()
    for sequence in range(2):
        for node in range(NUM_NODES):
            for key in range(NUM_KEYS):
                position, other = int(positions[sequence, node]), int(key_positions[sequence, key])
                is_far = window is not None and position - other >= window
                is_earlier = chunk is not None and other // chunk < position // chunk
                if is_far or is_earlier:
                    expected[sequence, 0, node, key] = -50.0
    assert torch.equal(mask.within(window, chunk), expected)


def test_layers_of_equal_reach_share_a_mask() -> None:
    positions = torch.arange(NUM_NODES)[None]
    mask = AttentionMask(torch.zeros(1, 1, NUM_NODES, NUM_NODES), positions, positions, MAX_LENGTH)
    assert mask.within(3) is mask.within(3) and mask.within(3) is not mask.within(2)
    assert mask.within(3, 5) is mask.within(3, 5) and mask.within(3, 5) is not mask.within(3)
    assert mask.within(None) is mask.within(MAX_LENGTH, MAX_LENGTH) is mask.whole


def test_a_node_is_as_far_behind_the_cached_tokens_as_it_is_deep() -> None:
    inputs = AttentionInputs(
        cache=(),
        tables=(),
        chunks=(),
        past_length=torch.tensor([5, 0]),
        position_offsets=torch.tensor([0, 1, 1, 2]),
        tree_mask=torch.zeros(4, 4),
        max_length=MAX_LENGTH,
    )
    assert inputs.position_ids.tolist() == [[5, 6, 6, 7], [0, 1, 1, 2]]
