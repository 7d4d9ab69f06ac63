"""The demo on a tiny bundle."""

from dataclasses import replace

import demo
import pytest

from medusa_trt.calibration.prompts import load_mt_bench_prompts
from medusa_trt.runtime.bundle import Bundle


def test_both_ways_are_compared(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["demo.py", str(tiny_bundle.path), "--threads", "1"])
    monkeypatch.setattr(demo, "OPTIONS", replace(demo.OPTIONS, rounds=1, max_new_tokens=4))
    questions = [replace(question, turns=("Hello?",)) for question in load_mt_bench_prompts()]
    monkeypatch.setattr(demo, "load_mt_bench_prompts", lambda: questions)
    assert demo.main() == 0
    out = capsys.readouterr().out
    assert "tiny-llama on ort-cpu, fp32, greedy" in out
    assert "Both give the same tokens." in out and "times a plain one" in out
    assert all(category in out for category in ("coding", "humanities", "writing"))
