"""Measures what disturbs timings."""

import os
import time
from pathlib import Path

import pytest

from medusa_trt.calibration import noise
from medusa_trt.calibration.noise import CoreWatch, Noise


def test_a_quiet_machine_has_no_warning() -> None:
    quiet = Noise.from_samples(1.95, 1, [[5.0, 5.1, 5.2], [9.0, 9.0, 9.1]])
    assert quiet.missing_cores == 0 and quiet.spread is not None and quiet.spread < 0.03
    assert quiet.warning is None
    assert Noise.from_samples(None, None, []).warning is None


def test_other_work_and_spread_are_named() -> None:
    busy = Noise.from_samples(0.3, 1, [[5.0, 5.0, 10.0, 20.0], [4.0, 8.0, 12.0, 30.0], []])
    assert busy.missing_cores == pytest.approx(0.7)
    assert "0.7 of the cores" in str(busy.warning) and "spread by" in str(busy.warning)
    assert "spread" not in str(Noise(0.7, 0.1).warning)
    assert "cores" not in str(Noise(0.05, 0.5).warning)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="not Linux")
def test_other_work_is_all_work_on_the_cores_except_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In 10 s this process works 6 s and others 13 s, 3 of them in another virtual machine."""
    stat, tick = tmp_path / "stat", os.sysconf("SC_CLK_TCK")
    clock = iter((0.0, 10.0))
    monkeypatch.setattr(noise, "_PROC_STAT", stat)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 2})
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(time, "process_time", iter((1.0, 7.0)).__next__)
    first = f"cpu1 {5 * tick} 0 0 {900 * tick} 70 0 0 0 0 0\n"
    stat.write_text(f"cpu 9 9\ncpu0 9 9\n{first}cpu2 0 0 0 {900 * tick} 70 0 0 0 0 0\nintr 1\n")
    watch = CoreWatch()
    second = f"cpu2 {6 * tick} {2 * tick} {tick} 0 0 {tick} {tick} {3 * tick} 0 0"
    stat.write_text(f"cpu 9 9\ncpu0 9 9\n{first.replace(str(5 * tick), str(10 * tick))}{second}\n")
    assert watch.count_free_cores() == pytest.approx(2 - 1.3)
