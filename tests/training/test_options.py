"""Options of training."""

from dataclasses import replace

import pytest

from medusa_trt.errors import TrainingError
from medusa_trt.training.options import TrainOptions


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_rows": 0}, "batch_rows is 0"),
        ({"soft_weight": 1.5}, "between 0 and 1"),
        ({"held_out_fraction": 0.0}, "held_out_fraction is 0"),
        ({"num_nodes": 1}, "num_nodes is 1"),
    ],
)
def test_options_are_checked(change: dict[str, float], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        replace(TrainOptions(), **change)  # type: ignore[arg-type]


def test_a_draft_vocabulary_of_0_is_the_whole_vocabulary() -> None:
    assert TrainOptions(draft_vocab_size=0) == TrainOptions(draft_vocab_size=None)
