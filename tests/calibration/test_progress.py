"""Progress of work that a Ctrl-C may end early."""

import pytest

from medusa_trt.calibration.progress import Progress, text_from_seconds


def test_an_interrupt_ends_the_work_and_no_more() -> None:
    progress = Progress(2, "pieces")
    with progress.until_interrupted():
        raise KeyboardInterrupt
    assert not progress.is_complete
    with progress.until_interrupted():
        progress.advance()
    assert progress.is_complete
    with pytest.raises(ValueError), progress.until_interrupted():
        raise ValueError


def test_durations_have_about_two_digits() -> None:
    assert [text_from_seconds(s) for s in (12.3, 200, 9000)] == ["12 s", "3 min", "2.5 h"]
