"""Bars of long work."""

import pytest

from medusa_trt.training.bars import BatchesBar


def test_a_batch_counts_whole_however_many_steps_it_took(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with BatchesBar("data", num_batches=3, max_steps=4) as bar:
        bar.finish_batch(is_old=True)
        for _ in range(9):  # More than planned: the model wrote the user's turns too.
            bar.advance()
        assert bar.n == 7
        bar.finish_batch("2 of 3")
        assert bar.n == 8
        bar.advance()
        bar.finish_batch("3 of 3")
        assert (bar.n, bar.initial) == (12, 4)
    last = capsys.readouterr().err.split("\r")[-1]
    assert "data: 100%" in last and "12/12" in last and "3 of 3" in last
