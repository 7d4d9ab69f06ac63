"""What `medusa-trt generate` can reply to, and how it writes the replies."""

import json
from pathlib import Path

import pytest
from support.terminal.command_line import generate, read_results, run

from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.session import (
    GenerationOptions,
    MedusaSession,
    SamplingOptions,
)

SHORT = ["--max-new-tokens", "12"]
USER = {"role": "user", "content": "hello"}


def test_a_prompt_comes_from_a_file(
    tiny_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = generate(capsys, tiny_bundle.path, "hello", *SHORT)
    (tmp_path / "prompt.txt").write_bytes(b"\xef\xbb\xbfhello\r\n")
    (tmp_path / "messages.json").write_text(json.dumps([USER]))
    (tmp_path / "saved.json").write_text(json.dumps({"model": "m", "messages": [USER]}))
    for flag, name in (
        ("--prompt-file", "prompt.txt"),
        ("--messages", "messages.json"),
        ("--messages", "saved.json"),
    ):
        assert generate(capsys, tiny_bundle.path, flag, tmp_path / name, *SHORT) == text


def test_a_reply_goes_on_with_the_assistants_last_message(
    tiny_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    messages = [USER, {"role": "assistant", "content": "Sure"}]
    (tmp_path / "m.json").write_text(json.dumps(messages))
    words = [tiny_bundle.path, "--messages", tmp_path / "m.json", *SHORT, "--echo"]
    assert "Sure" in generate(capsys, *words)


def test_a_system_message_changes_the_prompt(
    tiny_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    out = generate(capsys, tiny_bundle.path, "hello", *SHORT, "--echo", "--system", "Be brief.")
    assert "Be brief." in out and out.index("Be brief.") < out.index("hello")


def test_a_result_in_json_is_that_of_the_session(
    tiny_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--json", "--logprobs", "2", "--temperature", "1", "--seed", "5", "--n", "2"]
    found = read_results(generate(capsys, tiny_bundle.path, "hello", *SHORT, *words))
    sampling = SamplingOptions(temperature=1.0, seed=5)
    options = GenerationOptions(max_new_tokens=12, logprobs=2, sampling=sampling)
    with MedusaSession(tiny_bundle) as session:
        expected = session.generate_batch([[USER], [USER]], options)
    assert [result["reply"] for result in found] == [0, 1]
    for result, reply in zip(found, expected, strict=True):
        assert result["text"] == reply.text and result["token_ids"] == reply.token_ids
        assert result["finish_reason"] == reply.finish_reason
        assert result["stats"]["new_tokens"] == len(result["logprobs"]) == 12
        assert result["logprobs"][0]["logprob"] == reply.logprobs[0].logprob
        assert len(result["logprobs"][0]["top"]) == 2


def test_several_replies_and_their_logprobs_as_text(
    tiny_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--n", "2", "--temperature", "1", "--max-new-tokens", "3", "--logprobs", "1"]
    code, out, err = run(capsys, "generate", tiny_bundle.path, "hello", *words)
    assert code == 0 and out.startswith("[0] ") and "\n[1] " in out
    assert len([line for line in err.splitlines() if line]) == 2 * (3 + 1)


@pytest.mark.parametrize("as_file", [False, True])
def test_a_reply_conforms_to_a_schema_or_a_regex(
    as_file: bool, tiny_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    schema = '{"type": "array", "items": {"type": "boolean"}, "maxItems": 2}'
    (tmp_path / "schema.json").write_text(schema)
    given = tmp_path / "schema.json" if as_file else schema
    assert isinstance(json.loads(generate(capsys, tiny_bundle.path, "x", "--schema", given)), list)
    assert generate(capsys, tiny_bundle.path, "x", "--regex", "ab|cd") in ("ab\n", "cd\n")


def test_penalties_change_the_reply(
    tiny_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = generate(capsys, tiny_bundle.path, "hello", "--max-new-tokens", "30")
    words = ["--max-new-tokens", "30", "--repetition-penalty", "1.5", "--frequency-penalty", "2"]
    assert generate(capsys, tiny_bundle.path, "hello", *words) != plain
