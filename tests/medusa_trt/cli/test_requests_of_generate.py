"""What `medusa-trt generate` can reply to, and how it writes the replies."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.terminal.command_line import refusal, run

from medusa_trt.errors import ProcessorError
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.decoding.decoder import Decoder
from medusa_trt.runtime.decoding.sequence import SequenceState
from medusa_trt.runtime.scheduler import Request
from medusa_trt.runtime.session import (
    GenerationOptions,
    MedusaSession,
    Prompt,
    SamplingOptions,
)

SHORT = ["--max-new-tokens", "12"]
USER = {"role": "user", "content": "hello"}


def generate(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    code, out, err = run(capsys, "generate", *words)
    assert code == 0, err
    return out


def results(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.split("\n")[:-1]]


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
    found = results(generate(capsys, tiny_bundle.path, "hello", *SHORT, *words))
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


BATCH = [
    {"prompt": "hello", "id": "first", "max_new_tokens": 3},
    {"messages": [USER], "max_new_tokens": 3, "tree": "plain"},
    {"prompt": "hello", "regex": "a{3}", "n": 2, "temperature": 0.5, "seed": 1},
    {"prompt": "hello", "stop": "zzz", "logprobs": 0},
    {"prompt": "hello", "raw": True, "system": None, "echo": True},
]


def test_a_batch_file_has_its_results_in_order(
    tiny_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "batch.jsonl"
    path.write_text("\n\n".join(map(json.dumps, BATCH)) + "\n")
    found = results(generate(capsys, tiny_bundle.path, "--batch", path, "--max-new-tokens", "5"))
    assert [result["request"] for result in found] == [0, 1, 2, 2, 3, 4]
    assert found[0]["id"] == "first" and "id" not in found[1]
    assert found[0]["token_ids"] == found[1]["token_ids"] and len(found[0]["token_ids"]) == 3
    assert [result["text"] for result in found[2:4]] == ["aaa", "aaa"]
    assert len(found[4]["logprobs"]) == len(found[4]["token_ids"]) == 5
    assert found[5]["text"].startswith("hello")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt":"a","temprature":1}', "no option 'temprature': did you mean temperature?"),
        ('{"prompt":5}', "prompt is 5"),
        ('{"prompt":"a"', "Expecting"),
        ("[1]", "a request is a JSON object"),
        ("{}", "there must be a prompt or messages"),
        ('{"prompt":"a","messages":[{"role":"user","content":"b"}]}', "and not both"),
        ('{"prompt":"a","max_new_tokens":0}', "max_new_tokens is 0"),
        ('{"prompt":"a","schema":{"type":"objec"}}', "Invalid type: objec"),
        ('{"prompt":"a","tree":"chain-9"}', "there are 4 heads"),
        ('{"prompt":"a","n":0}', "n is 0"),
        ('{"prompt":"' + "x" * 600 + '"}', "the prompt has"),
        ('{"prompt":"","raw":true}', "the prompt is empty"),
        ('{"messages":[{"role":"user","content":{"type":"image"}}]}', "part of type 'image'"),
    ],
)
def test_a_wrong_line_is_named_before_any_work(
    line: str, message: str, tiny_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "batch.jsonl"
    path.write_text('{"prompt": "ok"}\n\n' + line)
    error = refusal(capsys, "generate", tiny_bundle.path, "--batch", path)
    assert f"line 3 of {path}: " in error and message in error


class _Failing:
    """A logits processor that gives up after the third token."""

    def __init__(self) -> None:
        self.num_tokens = 0

    def start(self, prompt_ids: Sequence[int]) -> "_Failing":
        return _Failing()

    def process(self, logits: NDArray[np.float32]) -> None:
        if self.num_tokens == 3:
            raise ProcessorError("the grammar cannot go on")

    def accept(self, token: int) -> None:
        self.num_tokens += 1


def test_a_request_that_fails_leaves_the_others_alone(
    tiny_bundle: Bundle,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "batch.jsonl"
    lines = [{"prompt": "hello"}, {"prompt": "hello", "id": 7, "seed": 7}, {"prompt": "hello"}]
    path.write_text("\n".join(map(json.dumps, lines)))
    make_request = MedusaSession.make_request

    def fail_at_seed_7(
        session: MedusaSession, prompt: Prompt, options: GenerationOptions, *, streamed: bool
    ) -> Request:
        if options.sampling.seed == 7:
            options = replace(options, processors=(_Failing(),))
        return make_request(session, prompt, options, streamed=streamed)

    monkeypatch.setattr(MedusaSession, "make_request", fail_at_seed_7)
    code, out, err = run(capsys, "generate", tiny_bundle.path, "--batch", path, *SHORT)
    found = results(out)
    assert code == 2 and "replies that failed: 1 of 3" in err
    assert [result["request"] for result in found] == [0, 1, 2]
    assert found[1]["error"] == "the grammar cannot go on" and found[1]["id"] == 7
    assert found[1]["finish_reason"] == "error"
    assert found[0]["token_ids"] == found[2]["token_ids"] and len(found[0]["token_ids"]) == 12
    assert found[1]["token_ids"] == found[0]["token_ids"][:3]


def test_requests_of_a_batch_share_steps_and_keep_their_order(
    tiny_bundle: Bundle,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "batch.jsonl"
    lines = [
        {"prompt": f"text {i}", "max_new_tokens": length, "ignore_eos": True, "temperature": 1.0}
        | {"seed": i}
        for i, length in enumerate([30, 2, 3, 25, 1, 4, 6])
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    together: list[int] = []
    step = Decoder.step

    def count(decoder: Decoder, states: Sequence[SequenceState]) -> object:
        together.append(len(states))
        return step(decoder, states)

    monkeypatch.setattr(Decoder, "step", count)
    alone = generate(capsys, tiny_bundle.path, "--batch", path, "--batch-size", "1")
    assert set(together) == {1}
    shared = generate(capsys, tiny_bundle.path, "--batch", path, "--batch-size", "3")
    assert max(together) == 3
    expected = [result["token_ids"] for result in results(alone)]
    assert [len(tokens) for tokens in expected] == [30, 2, 3, 25, 1, 4, 6]
    assert [result["token_ids"] for result in results(shared)] == expected
    assert [result["request"] for result in results(shared)] == list(range(7))
    error = refusal(capsys, "generate", tiny_bundle.path, "--batch", path, "--batch-size", "0")
    assert "--batch-size is 0: it must be at least 1" in error


def test_an_empty_batch_is_refused(
    tiny_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "batch.jsonl"
    path.write_text("\n")
    assert "has no requests" in refusal(capsys, "generate", tiny_bundle.path, "--batch", path)
