"""Errors in OpenAI's form: of each kind, and the field that is to blame."""

import json
from typing import Annotated, Any

import pytest
from fastapi import FastAPI, HTTPException, Request
from pydantic import BaseModel, Field
from starlette.testclient import TestClient

from medusa_trt.errors import EngineError, GrammarError, MedusaError, PromptError, TreeError
from medusa_trt.serving.errors import ApiError, add_error_replies, error_from_medusa
from medusa_trt.serving.log import RequestRecord


class Part(BaseModel, extra="forbid", strict=True):
    text: str
    size: Annotated[int, Field(ge=1)] = 1


class Fields(BaseModel, extra="forbid", strict=True):
    prompt: str | list[Part] | None = None
    regex: str | None = None
    tools: list[str] | None = None
    top_k: int = 0


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (404, "not_found_error"),
        (408, "timeout_error"),
        (413, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "server_error"),
        (503, "server_error"),
    ],
)
def test_the_type_follows_from_the_status(status: int, kind: str) -> None:
    error = ApiError(status, "é \udcff", param="a", code="b", headers={"retry-after": "3"})
    reply = error.response()
    assert reply.status_code == status and reply.headers["retry-after"] == "3"
    expected = {"message": "é \udcff", "type": kind, "param": "a", "code": "b"}
    assert bytes(reply.body).isascii() and json.loads(bytes(reply.body)) == {"error": expected}


@pytest.mark.parametrize(
    ("error", "body", "status", "param"),
    [
        (PromptError("top_k is -1: give more"), Fields(), 400, "top_k"),
        (PromptError("the prompt is empty"), Fields(), 400, None),
        (PromptError("top_k is -1: give more"), None, 400, None),
        (TreeError("unknown tree"), Fields(), 400, None),
        (GrammarError("no such rule"), Fields(regex="("), 400, "regex"),
        (GrammarError("no such rule"), Fields(tools=["a"]), 400, "tools"),
        (EngineError("top_k is gone"), Fields(), 500, None),
    ],
)
def test_an_error_of_the_runtime_is_the_clients_or_the_servers(
    error: MedusaError, body: Fields | None, status: int, param: str | None
) -> None:
    made = error_from_medusa(error, body)
    assert (made.status, made.param) == (status, param)
    assert str(error) in made.message and ((param or "") in made.message)


@pytest.fixture
def client() -> TestClient:
    """A client of an application with one route, whose record is in the reply's headers."""
    app = FastAPI()
    add_error_replies(app)

    @app.middleware("http")
    async def keep_record(request: Request, call_next: Any) -> Any:
        record = request.state.record = RequestRecord(request.method, request.url.path)
        reply = await call_next(request)
        reply.headers["x-noted"] = str(record.error)
        return reply

    @app.post("/v1/x")
    async def answer(body: Fields) -> dict[str, str]:
        if body.top_k == 7:
            raise ApiError(429, "too many", code="queue_full")
        if body.top_k == 8:
            raise HTTPException(418, "a teapot")
        return {}

    return TestClient(app)


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"prompt": 5}, "prompt", "invalid_value"),
        ({"prompt": [{"text": "a"}, {"text": 5}]}, "prompt.1.text", "invalid_value"),
        ({"prompt": [{"text": "a", "size": 0}]}, "prompt.0.size", "invalid_value"),
        ({"prompt": [{"size": 1}]}, "prompt.0.text", "missing_required_parameter"),
        ({"prompt": [{"text": "a", "b": 1}]}, "prompt.0.b", "unknown_parameter"),
        ({"a.b": 1}, "a.b", "unknown_parameter"),
        ({"top_k": 7}, None, "queue_full"),
        ([1], None, "invalid_json"),
    ],
)
def test_the_field_that_came_furthest_is_named(
    client: TestClient, body: object, param: str | None, code: str
) -> None:
    reply = client.post("/v1/x", json=body)
    error = reply.json()["error"]
    assert (error["param"], error["code"]) == (param, code), error
    assert error["message"].startswith(param or "") or f"{param!r}" in error["message"]
    assert reply.headers["x-noted"] == " ".join(filter(None, [code, param]))


def test_other_errors_of_routes_have_the_same_form(client: TestClient) -> None:
    wrong = client.post("/v1/x", content=b'{"top_k": }', headers={"content-type": "text/json"})
    assert wrong.status_code == 400 and wrong.json()["error"]["code"] == "invalid_json"
    teapot = client.post("/v1/x", json={"top_k": 8})
    assert teapot.status_code == 418
    assert teapot.json()["error"]["message"] == "POST /v1/x: a teapot"
    missing = client.get("/v1/y")
    assert missing.status_code == 404 and missing.json()["error"]["code"] == "not_found"
    assert client.put("/v1/x").headers["allow"] == "POST"
