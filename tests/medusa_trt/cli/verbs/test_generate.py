"""`medusa-trt generate` as a user meets it."""

import json
import os
import re
import shutil
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import pytest
from support.terminal.command_line import refusal, run

from medusa_trt.cli.verb_table import verb_from_name
from medusa_trt.cli.verbs.generate import GenerateArguments, read_prompt
from medusa_trt.errors import PromptError
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.options import GenerationOptions, SamplingOptions

STATISTICS = re.compile(r"\d+ tokens in .* tokens/s, mean accepted length \d.*, ended by \w+")


def parse(*words: str) -> GenerateArguments:
    arguments = verb_from_name("generate").parse("medusa-trt generate", ["bundle", "hi", *words])
    assert isinstance(arguments, GenerateArguments)
    return arguments


def test_the_defaults_are_those_of_the_dataclasses() -> None:
    assert parse() == GenerateArguments(bundle=Path("bundle"), prompt="hi")
    assert parse().reply == GenerationOptions()


def test_options_reach_the_dataclasses() -> None:
    words = ["--temperature=0.7", "--top-k=5", "--top-p=0.9", "--min-p=0.1", "--seed=3"]
    reply = parse(*words, "--stop", "a", "--stop", "b", "--acceptance", "typical").reply
    assert reply.sampling == SamplingOptions(temperature=0.7, top_k=5, top_p=0.9, min_p=0.1, seed=3)
    assert reply.stop == ("a", "b") and reply.acceptance == "typical"


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
    assert run(capsys, *arguments, "--stop", stop)[1] == text[: text.index(stop)] + "\n"
    assert run(capsys, *arguments, "--raw", "--echo")[1].startswith("hello")


def test_a_prompt_can_come_from_standard_input(tiny_bundle: Bundle) -> None:
    command = [sys.executable, "-m", "medusa_trt", "generate", str(tiny_bundle.path)]
    given = subprocess.run(
        [*command, "hello", "--max-new-tokens", "9"], capture_output=True, check=True
    )
    piped = subprocess.run(
        [*command, "-", "--max-new-tokens", "9"],
        capture_output=True,
        check=True,
        input=b"\xef\xbb\xbfhello\n",
    )
    assert piped.stdout == given.stdout


def test_a_reply_ends_with_a_line_end_and_one_token_has_no_speed(
    tiny_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    _, text, err = run(capsys, "generate", tiny_bundle.path, "hello", "--max-new-tokens", "1")
    assert text.endswith("\n") and text.count("\n") == 1 + text[:-1].count("\n")
    assert "1 token in" in err and "tokens/s" not in err


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_without_a_letter_shows_another(encoding: str, tiny_bundle: Bundle) -> None:
    command = [sys.executable, "-m", "medusa_trt", "generate", str(tiny_bundle.path), "日本 é"]
    ended = subprocess.run(
        [*command, "--raw", "--echo", "--max-new-tokens", "2"],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": encoding},
        check=True,
    )
    assert ended.stdout.startswith(b"?? ")
    ended = subprocess.run(
        [*command, "--raw", "--echo", "--max-new-tokens", "2", "--json"],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": encoding},
        check=True,
    )
    assert json.loads(ended.stdout)["text"].startswith("日本 é")


def test_a_prompt_that_is_no_utf_8_is_refused_with_its_place() -> None:
    with pytest.raises(PromptError, match="standard input is not UTF-8 text at byte 5"):
        read_prompt(BytesIO(b"\xef\xbb\xbfab\xff"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x" * 600], "prompt has"),
        ([], "give one of PROMPT, --prompt-file"),
        (["hi", "--batch", "x"], "give one of PROMPT, --prompt-file"),
        (["--prompt-file", "none.txt"], "cannot read none.txt: No such file"),
        (["--messages", "none.json"], "cannot read none.json: No such file"),
        (["hi", "--tools", "none.json"], "cannot read none.json: No such file"),
        (["hi", "--template-variable", "x"], "is 'x': write NAME=VALUE"),
        (["hi", "--n", "0"], "n is 0"),
        (["hi", "--schema", "{}", "--regex", "x"], "schema and regex exclude each other"),
        (["hi", "--schema", "none.json"], "cannot read none.json: No such file"),
        (["hi", "--regex", "("], "regular expression cannot be used"),
        (["hi", "--raw", "--system", "x"], "a raw prompt has no messages, system message"),
        (["hi", "--repetition-penalty", "0"], "--repetition-penalty is 0"),
        (["", "--raw"], "empty"),
        (["hi", "--max-new-tokens", "0"], "--max-new-tokens is 0"),
        (["hi", "--threads", "0"], "--threads is 0"),
        (["hi", "--threads", "100000"], "--threads is 100000"),
        (["hi", "--max-length", "513"], "--max-length is 513"),
        (["hi", "--backend", "gpu"], "unknown backend 'gpu': choose from ort-cpu, ort-cuda"),
        (["hi", "--backend", "ort-cuda"], "exported for ort-cpu: export the model with --target"),
        (["hi", "--tree", "chain-5"], "5 but there are 4 heads"),
        (["hi", "--tree", "oak"], "unknown tree 'oak'"),
        (["hi", "--temperature", "-1"], "temperature is -1"),
        (["hi", "--acceptance", "greedy", "--temperature", "1"], "acceptance greedy"),
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


def test_a_reader_that_leaves_is_no_error(tiny_bundle: Bundle) -> None:
    command = f"{sys.executable} -m medusa_trt generate {tiny_bundle.path} hi | head -c 1"
    piped = subprocess.run(command, shell=True, capture_output=True)
    assert b"Traceback" not in piped.stderr and b"BrokenPipe" not in piped.stderr
