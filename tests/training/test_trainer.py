"""Interrupted runs, and the count of the tokens trained on."""

import shutil
from pathlib import Path

import pytest
import torch
from support.ruled_data import NOISE, make_ruled_split, quick_options

from medusa_trt.export.head_conversion.saving import name_tensors
from medusa_trt.export.heads.formats import FORMATS
from medusa_trt.export.models.base_model import BaseModel
from medusa_trt.training.medusa1 import train_heads
from medusa_trt.training.options import HeadsShape
from medusa_trt.training.trainer import find_last_checkpoint


@pytest.mark.parametrize("has_features", [True, False])
def test_a_killed_run_continues_to_the_same_weights(
    has_features: bool, base: BaseModel, tmp_path: Path
) -> None:
    """The last checkpoints are taken away, and one is left as a kill in the middle leaves it."""
    split = make_ruled_split(base, NOISE, has_features=has_features, count=30)
    options = quick_options(
        HeadsShape(), max_steps=12, num_checkpoints=4, num_sampled=4, batch_size=4
    )
    whole = train_heads(base, split, tmp_path / "whole", options)
    ended = tmp_path / "ended"
    train_heads(base, split, ended, options)
    shutil.rmtree(ended / "checkpoint-12")
    (ended / "checkpoint-10").mkdir()
    (ended / "checkpoint-10" / "trainer_state.json").write_text('{"global_')
    assert find_last_checkpoint(ended) == ended / "checkpoint-9"
    torch.manual_seed(1234)
    continued = train_heads(base, split, ended, options)
    assert [e["step"] for e in continued.log] == [e["step"] for e in whole.log]
    row = FORMATS["medusa-trt"]
    expected = name_tensors(whole.heads, row, torch.float32)
    tensors = name_tensors(continued.heads, row, torch.float32)
    assert all(torch.equal(value, tensors[name]) for name, value in expected.items())
    assert continued.accuracy == whole.accuracy
    assert continued.num_train_tokens == whole.num_train_tokens


def test_the_tokens_of_the_updates_are_counted_and_not_those_of_the_data(
    base: BaseModel, tmp_path: Path
) -> None:
    """20 replies of 46 tokens, of which 45 have one to predict; a second pass brings no new ones.

    A conversation cut to 14 tokens has 10 tokens of its reply.
    """
    counts = {}
    for name, has_features, changes in (
        ("rows", True, {"max_steps": 3, "batch_rows": 16}),
        ("all rows", True, {"num_epochs": 2, "batch_rows": 300}),
        ("conversations", False, {"max_steps": 2, "batch_size": 3, "accumulation": 2}),
        ("cut conversations", False, {"num_epochs": 2, "max_length": 14}),
    ):
        split = make_ruled_split(base, 0.0, has_features=has_features, count=30)
        options = quick_options(HeadsShape(num_heads=1, has_root_map=False), **changes)
        counts[name] = train_heads(base, split, tmp_path / name, options).num_train_tokens
    assert counts == {
        "rows": 3 * 16,
        "all rows": 20 * 45,
        "conversations": 2 * 2 * 3 * 45,
        "cut conversations": 20 * 9,
    }
