"""Bars of long work."""

import sys
import textwrap

import pytest
from support.terminal.pseudo_terminal import run_in_terminal

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
    assert "data: 100%" in last and "3 of 3" in last


@pytest.mark.parametrize("columns", [80, 0])
def test_the_note_of_a_bar_is_whole_in_a_small_terminal(columns: int) -> None:
    # A terminal of a container may have a width of 0, where tqdm wrote nothing.
    code = """
        from medusa_trt.training.bars import BatchesBar
        with BatchesBar("data", 160, 128) as bar:
            bar.advance()
            bar.finish_batch("107 of 160 files, 1753088 tokens, 16000/s")
    """
    shown = run_in_terminal([sys.executable, "-c", textwrap.dedent(code)], columns)
    line = [line for line in map(str.strip, shown.split("\r")) if line][-1]
    assert "data:   1%" in line and line.endswith("107 of 160 files, 1753088 tokens, 16000/s")
    assert len(line) <= 80
