"""The commands as processes: a signal before, within and after their work."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.tiny_models import save_tiny_heads

from medusa_trt import __main__ as commands
from medusa_trt.cli import main as cli

SIGNALS = (signal.SIGINT, signal.SIGTERM)

AT_EVENT = """
import sys
from signal import raise_signal
event, text, number = sys.argv.pop(1), sys.argv.pop(1), int(sys.argv.pop(1))
def hook(name, arguments):
    global number
    if name == event and text in str(arguments[0]) and number:
        now, number = number, 0
        raise_signal(now)
sys.addaudithook(hook)
"""
COMMAND = AT_EVENT + "from medusa_trt.__main__ import main; sys.exit(main())"


def interrupted_at(
    event: str, text: str, number: signal.Signals, *arguments: object
) -> tuple[int, list[str]]:
    """Runs the command with a signal at the first audit event of this kind; its code and lines."""
    words = [sys.executable, "-c", COMMAND, event, text, int(number), *arguments]
    ended = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    return ended.returncode, ended.stderr.splitlines()


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("module", ["medusa_trt.cli.main", "argparse", "medusa_trt.cli.options"])
def test_a_command_can_be_interrupted_before_it_knows_its_arguments(
    module: str, number: signal.Signals
) -> None:
    assert interrupted_at("import", module, number, "-h") == (128 + number, ["interrupted"])


@pytest.mark.parametrize(
    ("event", "text"),
    [("import", "torch.export"), ("os.mkdir", ".bundle.partial-"), ("exec", "<eval_with_key>")],
    ids=["while importing", "while making the folder", "while tracing"],
)
def test_an_interrupted_export_leaves_nothing(
    event: str, text: str, tiny_model: Path, tmp_path: Path
) -> None:
    heads = save_tiny_heads(tmp_path / "heads.safetensors")
    arguments = ["export", "--model", tiny_model, "--heads", heads, "--output", tmp_path / "bundle"]
    code, lines = interrupted_at(event, text, signal.SIGTERM, *arguments)
    assert code == 128 + signal.SIGTERM and lines[-1] == "interrupted"
    assert [path.name for path in tmp_path.iterdir()] == ["heads.safetensors"]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_after_the_work_comes_too_late(number: signal.Signals) -> None:
    late = f"import atexit; atexit.register(lambda: raise_signal({int(number)}))\n"
    words = [sys.executable, "-c", late + COMMAND, "none", "", "0", "--version"]
    ended = subprocess.run(words, capture_output=True, text=True)
    assert ended.returncode == 0 and ended.stderr == ""


@pytest.mark.parametrize("is_interrupted", [False, True])
@pytest.mark.parametrize(
    ("command", "name"), [(commands.main, "main"), (commands.export_main, "export_main")]
)
def test_each_command_is_a_function_of_the_command_line(
    command: Callable[[], int],
    name: str,
    is_interrupted: bool,
    interruptible: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def work() -> int:
        if is_interrupted:
            signal.raise_signal(signal.SIGTERM)
        return 7

    monkeypatch.setattr(cli, name, work)
    assert command() == (128 + signal.SIGTERM if is_interrupted else 7)
    assert {signal.getsignal(number) for number in SIGNALS} == {signal.SIG_IGN}
    assert capsys.readouterr().err == "interrupted\n" * is_interrupted
