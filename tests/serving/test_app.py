"""Routes over plain HTTP: fields that are refused, tokens, states."""

import json
from typing import Any

import pytest
from support.servers.live_server import LiveServer, wait_for

from medusa_trt.runtime.session import MedusaSession

SCHEMA_WITHOUT_TYPE = {
    "type": "json_schema",
    "json_schema": {"name": "x", "schema": {"type": "no-type"}},
}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": 3}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 100}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
        ({"seed": -(2**63) - 1}, "seed"),
        ({"stop": [""]}, "stop.0"),
        ({"stop": 5}, "stop"),
        ({"stop": ["a"] * 10_000}, "stop"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"999999": 1}}, "logit_bias"),
        ({"stop_token_ids": [999999]}, "stop_token_ids"),
        ({"stop_token_ids": [-1]}, "stop_token_ids.0"),
        ({"stop_token_ids": [1] * 129}, "stop_token_ids"),
        ({"logit_bias": {"1": 101}}, "logit_bias.1"),
        ({"logit_bias": {"1" * 5000: 1}}, "logit_bias"),
        ({"tree": "cartesian-" + "9x" * 200 + "9"}, "tree"),
        ({"best_of": 2}, "best_of"),
        ({"not-a name": 2}, "not-a name"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"usage": True}}, "stream_options.usage"),
        (
            {"stream": True, "stream_options": {"continuous_usage_stats": True}},
            "stream_options.continuous_usage_stats",
        ),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"regex": "("}, "regex"),
        ({"grammar": "x"}, "grammar"),
        ({"response_format": SCHEMA_WITHOUT_TYPE}, "response_format"),
        ({"regex": "a", "grammar": 'start: "a"'}, "regex"),
        ({"tree": "no-such-tree"}, "tree"),
        ({"tree": "/etc/passwd.json"}, "tree"),
        ({"lookup_ngram": 17}, "lookup_ngram"),
        ({"acceptance": "greedy"}, "acceptance"),
        ({"acceptance": "typical", "logprobs": True}, "acceptance"),
        ({"chat_template_kwargs": {"no_such_variable": True}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": "hello", "mood": 1}]}, "messages.0.mood"),
        ({"messages": [{"role": "user", "content": "h" * 600}]}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "assistant", "content": None}]}, "messages.0.content"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages.0.tool_call_id"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(
    live: LiveServer, fields: dict[str, Any], param: str | None
) -> None:
    reply = live.chat(**fields)
    error = reply.json()["error"]
    assert reply.status_code == 400, error
    assert error["param"] == param, error
    assert error["type"] == "invalid_request_error" and error["code"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert "\n" not in error["message"]


@pytest.mark.parametrize(
    ("fields", "param", "reason"),
    [
        ({"prompt": ""}, "prompt", "is empty"),
        ({"prompt": []}, "prompt", "at least 1 item"),
        ({"prompt": [[]]}, "prompt.0", "at least 1 item"),
        ({"prompt": [-1]}, "prompt.0", "greater than or equal to 0"),
        ({"prompt": [10**6]}, "prompt", "outside 0 to"),
        ({"prompt": "h" * 600}, "prompt", "tokens"),
        ({"stop": ["a"] * 17}, "stop", "at most 16 items"),
        ({"best_of": 2}, "best_of", "leave it out"),
        ({"suffix": "x"}, "suffix", "does not have this field"),
        ({"tree": "chain-4095"}, "tree", "use 0 to 63"),
    ],
)
def test_a_wrong_completion_is_refused_by_what_came_furthest(
    live: LiveServer, fields: dict[str, Any], param: str, reason: str
) -> None:
    error = live.complete(**fields).json()["error"]
    assert error["param"] == param and reason in error["message"], error


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_only_a_streams_last_chunk_has_counts_and_the_others_null(
    live: LiveServer, path: str
) -> None:
    prompt: dict[str, Any] = {"prompt": "hello"}
    if "chat" in path:
        prompt = {"messages": [{"role": "user", "content": "hello"}]}
    asked = prompt | {"stream": True, "max_tokens": 5}
    counting = {"include_usage": True, "continuous_usage_stats": True}
    for options in (None, {"include_usage": False}, {"include_usage": True}, counting):
        answer = live.client.post(path, json=asked | {"stream_options": options})
        events = [line[6:] for line in answer.text.split("\n\n") if line.startswith("data: {")]
        *chunks, last = [json.loads(event) for event in events]
        if options is counting:
            counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
            assert counts == sorted(counts) and counts[0] > 0
            assert chunks[-1]["usage"].items() <= last["usage"].items()
        elif options and options["include_usage"]:
            assert last["choices"] == [] and last["usage"]["completion_tokens"] <= 5
            assert all(chunk["usage"] is None and chunk["choices"] for chunk in chunks)
        else:
            assert not any("usage" in chunk for chunk in [*chunks, last])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "no JSON at character 1"),
        (b"[1]", "no JSON object"),
        (b'"text"', "no JSON object"),
        (b"", "no JSON object"),
        (b"\xff\xfe", "no JSON at character 0"),
        (b"[" * 100_000, "no JSON (maximum recursion depth"),
        (b'{"prompt": "a\xff"}', "no JSON ('utf-8' codec can't decode byte 0xff"),
        (b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}", "no JSON (Exceeds the limit"),
        (b'{"prompt": NaN}', "prompt"),
        (b'{"\\ud800": 1, "prompt": "a"}', "name of a field"),
        (b'{"prompt": "\\ud800"}', "which is no Unicode"),
    ],
)
def test_a_malformed_body_is_a_clients_error(
    live: LiveServer, content: bytes, message: str
) -> None:
    headers = {"content-type": "application/json"}
    reply = live.client.post("/v1/completions", content=content, headers=headers)
    assert reply.status_code == 400
    assert message in reply.json()["error"]["message"]


def test_a_head_is_that_of_a_get(live: LiveServer) -> None:
    for path in ("/", "/health", "/ready", "/v1/models"):
        head, whole = live.client.head(path), live.client.get(path)
        assert head.status_code == 200 and head.content == b""
        assert head.headers["content-length"] == str(len(whole.content))
    assert live.client.head("/v1/completions").status_code == 405


def test_a_fault_is_a_line_of_json_and_an_error_with_an_id(
    live: LiveServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(live.service, "check_model", fail)
    reply = live.complete()
    assert reply.status_code == 500 and reply.json()["error"]["code"] == "internal"
    wait_for(lambda: live.log[-1]["request"] == reply.headers["x-request-id"])
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["fault"] == "ZeroDivisionError('a bug')"


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/x", 404), ("PUT", "/health", 405)]
)
def test_wrong_paths_have_errors_of_the_same_shape(
    live: LiveServer, method: str, path: str, status: int
) -> None:
    reply = live.client.request(method, path)
    assert reply.status_code == status
    assert reply.json()["error"]["code"]


def test_tokens_and_text(live: LiveServer, offline: MedusaSession) -> None:
    reply = live.client.post("/tokenize", json={"prompt": "hällo"}).json()
    assert reply["tokens"] == offline.encode("hällo") and reply["count"] == len(reply["tokens"])
    back = live.client.post("/detokenize", json={"tokens": reply["tokens"]}).json()
    assert back == {"prompt": "hällo"}
    messages = [{"role": "user", "content": [{"type": "text", "text": "hello"}]}]
    chat = live.client.post("/tokenize", json={"messages": messages}).json()
    assert chat["tokens"] == offline.encode(messages)
    beyond = live.client.post("/detokenize", json={"tokens": [10**6]})
    assert beyond.status_code == 400 and beyond.json()["error"]["param"] == "tokens"


def test_states_and_models(live: LiveServer) -> None:
    assert live.client.get("/health").json() == {"status": "ok"}
    assert live.client.get("/ready").json() == {"status": "ready"}
    (model,) = live.client.get("/v1/models").json()["data"]
    assert live.client.get(f"/v1/models/{model['id']}").json() == model
    assert live.client.get("/v1/models/other").status_code == 404
    paths = live.client.get("/openapi.json").json()["paths"]
    assert {"/v1/chat/completions", "/v1/completions", "/metrics"} <= paths.keys()
    answers = paths["/v1/completions"]["post"]["responses"]
    assert {"4XX", "5XX"} <= answers.keys() and "422" not in answers
