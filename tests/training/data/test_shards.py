"""Shards on disk."""

from pathlib import Path

import pytest
import torch

from medusa_trt.errors import TrainingError
from medusa_trt.training.data.shards import DataSpec, Shard, load_shards, name_shard, write_spec


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    spec = DataSpec(
        format_version=1,
        model="tiny",
        hidden_size=8,
        vocab_size=32,
        num_shards=2,
        num_conversations=4,
        batch_size=2,
        num_turns=1,
        max_new_tokens=3,
        temperatures=(0.0,),
        has_features=False,
        prompts_sha256="",
        dtype="float32",
        seed=0,
    )
    write_spec(tmp_path, spec)
    turns = torch.tensor([0, 1, 1, 0, 1], dtype=torch.int32)
    shard = Shard(turns + 5, turns, torch.tensor([3, 2], dtype=torch.int32), None)
    for index in range(2):
        shard.save(name_shard(tmp_path, index))
    assert all(torch.equal(s.token_ids, shard.token_ids) for s in load_shards(tmp_path))
    name_shard(tmp_path, 1).write_bytes(b"damaged")
    with pytest.raises(TrainingError, match="shard-00001"):
        load_shards(tmp_path)
