"""The lines of the log."""

import json

import pytest
from support.servers.live_server import LiveServer, wait_for

from medusa_trt.serving.errors import ApiError
from medusa_trt.serving.log import RequestRecord, write_fault


def test_only_an_error_of_the_server_is_told_in_its_words() -> None:
    record = RequestRecord("POST", "/v1/x")
    record.note_error(ApiError(400, "prompt: 'secret' is wrong", param="prompt", code="bad"))
    assert record.describe()["error"] == "bad prompt"
    record.note_error(ApiError(500, "the device is gone", code="engine_failed"))
    assert record.describe()["error"] == "the device is gone"


def test_only_a_request_for_replies_has_counts() -> None:
    record = RequestRecord("GET", "/health", status=200)
    head = {"time", "request", "method", "path", "status", "ms"}
    assert record.describe().keys() == head and record.describe()["method"] == "GET"
    record.num_choices, record.completion_tokens, record.first_token_s = 2, 7, 0.01
    record.finish_reasons += ["stop", "length"]
    line = record.describe()
    assert (line["choices"], line["completion_tokens"], line["first_token_ms"]) == (2, 7, 10.0)
    assert line["finish"] == ["stop", "length"] and "error" not in line


def test_a_fault_is_one_line_with_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        raise ValueError("é\n")
    except ValueError as error:
        write_fault(error)
    written = capsys.readouterr().err
    assert written.isascii() and written.count("\n") == 1
    line = json.loads(written)
    assert line["fault"] == repr(ValueError("é\n")) and "test_log.py" in line["traceback"]


def test_the_log_has_counts_and_no_text(live: LiveServer) -> None:
    reply = live.chat(
        messages=[{"role": "user", "content": "secret"}],
        max_tokens=3,
        user="me",
        prompt_cache_key="k",
    )
    wrong = live.complete(prompt={"secret": 1})
    ids = [each.headers["x-request-id"] for each in (reply, wrong)]
    # A line is written after the answer was sent.
    wait_for(lambda: {line["request"] for line in live.log} >= set(ids))
    lines = {line["request"]: line for line in live.log}
    first, second = (lines[each] for each in ids)
    assert first["status"] == 200 and first["user"] == "me"
    assert first["prompt_cache_key"] == "k"
    assert first["completion_tokens"] == reply.json()["usage"]["completion_tokens"]
    assert first["prompt_tokens"] == reply.json()["usage"]["prompt_tokens"]
    assert second["status"] == 400 and second["error"].startswith("invalid_value prompt")
    assert "secret" not in json.dumps(live.log)
