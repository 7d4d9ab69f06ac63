"""A Ctrl-C or SIGTERM, at chosen moments of a command's life: what it says, returns and leaves."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from medusa_trt.cli import main as cli
from medusa_trt.files import make_folder
from medusa_trt.interrupts import (
    Interrupted,
    defer_interrupts,
    find_interrupt_code,
    raise_interrupts,
)
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.engines.base import VerifyOutputs
from medusa_trt.runtime.engines.ort_cpu import OrtEngine

SIGNALS = (signal.SIGINT, signal.SIGTERM)

MODULE = """
import signal, sys
from medusa_trt.interrupts import find_interrupt_code, raise_interrupts
raise_interrupts()
try:
    exec("signal.raise_signal(signal.SIGTERM)")
except KeyboardInterrupt:
    sys.exit(find_interrupt_code())
"""


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize(
    "verb", ["bench", "calibrate heads", "calibrate latency", "calibrate threshold", "generate"]
)
def test_an_interrupt_within_a_reply_keeps_its_exit_code(
    verb: str,
    number: signal.Signals,
    interruptible: None,
    tiny_bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The session takes it for a wish to end the reply."""
    verify, num_steps = OrtEngine.verify, 0

    def interrupted(*arguments: Any, **options: Any) -> VerifyOutputs:
        nonlocal num_steps
        num_steps += 1
        if num_steps == 3:
            signal.raise_signal(number)
        return verify(*arguments, **options)

    bundle = shutil.copytree(tiny_bundle.path, tmp_path / "bundle")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(f"question {index}" for index in range(12)))
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(OrtEngine, "verify", interrupted)
    limit = ["--max-new-tokens", "8"]
    asked = {
        "calibrate latency": ["--sizes", "2", "--contexts", "16"],
        "generate": ["hello", *limit],
    }
    words = asked.get(verb, ["--prompts", str(prompts), *limit])
    code = cli.main([*verb.split(), str(bundle), *words, "--threads", "1"])
    assert code == 128 + number
    folder = bundle / "calibration"
    left = set(tmp_path.rglob("*")) - {*before, folder}
    assert left <= {folder / "calibration.json", folder / "report.html"}


def test_an_interrupt_within_generated_code_keeps_its_exit_code(tmp_path: Path) -> None:
    """CPython ends `python -m` by SIGINT where a plain KeyboardInterrupt went through `exec`."""
    (tmp_path / "generated_code.py").write_text(MODULE)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    words = [sys.executable, "-m", "generated_code"]
    ended = subprocess.run(words, env=os.environ | {"PYTHONPATH": path})
    assert ended.returncode == 128 + signal.SIGTERM


def test_a_signal_that_the_parent_process_ignores_stays_ignored(interruptible: None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise_interrupts()
    signal.raise_signal(signal.SIGINT)
    with pytest.raises(Interrupted, match="SIGTERM"):
        signal.raise_signal(signal.SIGTERM)


def test_deferred_interrupts_come_after_the_block(interruptible: None) -> None:
    done = []
    with pytest.raises(Interrupted, match="SIGTERM"), defer_interrupts():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        done.append("all of it")
    assert done
    with pytest.raises(Interrupted, match="SIGINT"):
        signal.raise_signal(signal.SIGINT)


def test_threads_may_defer_interrupts() -> None:
    done = []

    def work() -> None:
        with defer_interrupts():
            done.append("all of it")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done


def test_a_second_interrupt_does_not_stop_the_clean_up(
    interruptible: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove = shutil.rmtree

    def interrupted_remove(*arguments: Any, **options: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        remove(*arguments, **options)

    monkeypatch.setattr(shutil, "rmtree", interrupted_remove)
    with pytest.raises(Interrupted), make_folder(tmp_path / "bundle", False) as folder:
        (folder / "weights").touch()
        signal.raise_signal(signal.SIGINT)
    assert not list(tmp_path.iterdir())


def test_an_interrupt_does_not_part_the_old_bundle_from_the_new(
    interruptible: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, rename = tmp_path / "bundle", Path.rename

    def interrupted_rename(path: Path, target: Path) -> Path:
        signal.raise_signal(signal.SIGTERM)
        return rename(path, target)

    output.mkdir()
    monkeypatch.setattr(Path, "rename", interrupted_rename)
    with pytest.raises(Interrupted), make_folder(output, True) as folder:
        (folder / "new").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["bundle", "new"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_that_a_finalizer_swallowed_leaves_nothing(
    interruptible: None, tmp_path: Path
) -> None:
    class Finalized:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    with (
        pytest.raises(Interrupted) as raised,
        make_folder(tmp_path / "bundle", overwrite=False) as folder,
    ):
        (folder / "file").write_text("half")
        Finalized()  # is gone at once, and so is what it raises
        (folder / "file").write_text("whole")
    assert raised.match("SIGTERM") and find_interrupt_code() == 143
    assert not list(tmp_path.iterdir())
