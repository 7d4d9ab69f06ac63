"""Batches of requests: results in order, wrong lines, replies that fail or share steps."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from support.terminal.command_line import generate, read_results, refusal, run

from medusa_trt.errors import ProcessorError
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.decoding.decoder import Decoder
from medusa_trt.runtime.decoding.sequence import SequenceState
from medusa_trt.runtime.scheduler import Request
from medusa_trt.runtime.session import GenerationOptions, MedusaSession, Prompt

SHORT = ["--max-new-tokens", "12"]
USER = {"role": "user", "content": "hello"}
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
    found = read_results(
        generate(capsys, tiny_bundle.path, "--batch", path, "--max-new-tokens", "5")
    )
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
    found = read_results(out)
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
    expected = [result["token_ids"] for result in read_results(alone)]
    assert [len(tokens) for tokens in expected] == [30, 2, 3, 25, 1, 4, 6]
    assert [result["token_ids"] for result in read_results(shared)] == expected
    assert [result["request"] for result in read_results(shared)] == list(range(7))
    error = refusal(capsys, "generate", tiny_bundle.path, "--batch", path, "--batch-size", "0")
    assert "--batch-size is 0: it must be at least 1" in error


def test_an_empty_batch_is_refused(
    tiny_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "batch.jsonl"
    path.write_text("\n")
    assert "has no requests" in refusal(capsys, "generate", tiny_bundle.path, "--batch", path)
