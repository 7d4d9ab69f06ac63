"""The split into conversations to train on and held-out ones."""

import pytest
import torch

from medusa_trt.errors import TrainingError
from medusa_trt.training.data.rows import Split
from medusa_trt.training.data.shards import Shard


def test_held_out_prompts_never_overlap_the_others() -> None:
    """Also where a prompt occurs several times, and in any order of shards."""
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(0, 9, (12, 3), generator=generator, dtype=torch.int32)
    ids = [torch.cat([prompts[i % 12], torch.full((4,), i, dtype=torch.int32)]) for i in range(40)]
    turns = torch.tensor([0, 0, 0, 1, 1, 1, 1], dtype=torch.int32)

    def shard(rows: list[torch.Tensor]) -> Shard:
        lengths = torch.full((len(rows),), 7, dtype=torch.int32)
        return Shard(torch.cat(rows), turns.repeat(len(rows)), lengths, None)

    def sides(shards: list[Shard]) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
        split = Split.from_shards(shards, 0.2)
        train, held_out = (
            sorted(tuple(c.token_ids.tolist()) for c in side)
            for side in (split.train, split.held_out)
        )
        return train, held_out

    train, held_out = sides([shard(ids[:15]), shard(ids[15:])])
    assert len(train) + len(held_out) == 40
    assert len({row[:3] for row in held_out}) == 3  # 20 % of twelve prompts, rounded up
    assert not {row[:3] for row in train} & {row[:3] for row in held_out}
    assert sides([shard(ids[::-1])]) == (train, held_out)
    with pytest.raises(TrainingError, match="1 different prompts"):
        sides([shard(ids[:1])])
