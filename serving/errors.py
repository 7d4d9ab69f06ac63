"""Errors in the form that OpenAI's clients read."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException as StarletteHTTPException

from medusa_trt.errors import GrammarError, MedusaError, PromptError, PromptLengthError, TreeError

_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    408: "timeout_error",
    429: "rate_limit_error",
}

_GRAMMARS = ("regex", "grammar", "tools", "response_format")
"""Fields that restrict a reply by a grammar."""

_PROMPTS = ("prompt", "messages")
"""Fields that hold what is to be replied to."""


class ApiError(Exception):
    """A request that cannot be answered.

    Attributes:
        status: the status of the reply.
        message: what was wrong, the value that was seen, and what to do next.
        param: the field that is to blame; None if it is none alone.
        code: a word for programs.
        headers: further headers of the reply.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The reply's body."""
        is_server = self.status >= 500
        kind = "server_error" if is_server else _TYPES.get(self.status, "invalid_request_error")
        return {
            "error": {
                "message": self.message,
                "type": kind,
                "param": self.param,
                "code": self.code,
            }
        }

    def response(self) -> Response:
        """The reply."""
        # ASCII, because a client's own text in the message may hold half a surrogate pair.
        return Response(
            json.dumps(self.body()),
            status_code=self.status,
            media_type="application/json",
            headers=self.headers,
        )


def error_from_medusa(error: MedusaError, body: BaseModel | None = None) -> ApiError:
    """Makes the client's fault of an error about a prompt or an option, else the server's.

    Args:
        error: the error; the messages about options begin with the option's name.
        body: the request's fields; of those that restrict a reply it has only one.
    """
    text = str(error)
    if isinstance(error, GrammarError):
        name = next((field for field in _GRAMMARS if getattr(body, field, None) is not None), None)
        return ApiError(400, f"{name}: {text}", param=name, code="invalid_value")
    if not isinstance(error, PromptError | TreeError):
        return ApiError(500, text, code="engine_failed")
    name = text.split(" ", 1)[0]
    if text.startswith("the prompt "):
        name = next((field for field in _PROMPTS if getattr(body, field, None) is not None), "")
    is_field = body is not None and name in type(body).model_fields
    # Clients look for this word to shorten a conversation.
    code = "context_length_exceeded" if isinstance(error, PromptLengthError) else "invalid_value"
    return ApiError(400, text, param=name if is_field else None, code=code)


def add_error_replies(app: FastAPI) -> None:
    """Lets all errors of an application have this form."""

    @app.exception_handler(ApiError)
    async def reply_to_api_error(request: Request, error: ApiError) -> Response:
        return _note(request, error).response()

    @app.exception_handler(RequestValidationError)
    async def reply_to_wrong_fields(request: Request, error: RequestValidationError) -> Response:
        return _note(request, _error_from_fields(error.errors(), error.body)).response()

    @app.exception_handler(StarletteHTTPException)
    async def reply_to_http_error(request: Request, error: HTTPException) -> Response:
        if error.status_code == 400:
            reason = str(error.__cause__ or error.detail)[:200]
            named = ApiError(
                400, f"the body is no JSON ({reason}): correct it", code="invalid_json"
            )
            return _note(request, named).response()
        message = f"{request.method} {request.url.path}: {error.detail}"
        code = str(error.detail).lower().replace(" ", "_")
        named = ApiError(error.status_code, message, code=code, headers=error.headers)
        return _note(request, named).response()


def _note(request: Request, error: ApiError) -> ApiError:
    request.state.record.note_error(error)
    return error


def _error_from_fields(errors: Sequence[Mapping[str, Any]], body: object) -> ApiError:
    """Describes the first field of a body that does not fit."""
    error = max(errors, key=_rank_error)
    kind = error["type"]
    path = _path_from_location(error["loc"][1:], body, is_missing=kind == "missing")
    if kind == "json_invalid":
        reason = error["ctx"]["error"]
        message = f"the body is no JSON at character {error['loc'][-1]} ({reason}): correct it"
        return ApiError(400, message, code="invalid_json")
    if kind == "string_unicode" and not path:
        message = "the name of a field is not valid Unicode: correct it"
        return ApiError(400, message, code="unknown_parameter")
    if not path:
        message = "the body is no JSON object: send one, with content-type application/json"
        return ApiError(400, message, code="invalid_json")
    name = ".".join(path)
    if kind == "extra_forbidden":
        message = f"unknown field {name!r}: leave it out"
        return ApiError(400, message, param=name, code="unknown_parameter")
    if kind == "unsupported":
        return ApiError(400, f"{name}: {error['msg']}", param=name, code="unsupported_parameter")
    if kind == "missing":
        message = f"the field {name!r} is missing: give it"
        return ApiError(400, message, param=name, code="missing_required_parameter")
    reason = error["msg"].removeprefix("Value error, ").replace(" after validation", "")
    seen = "" if kind == "value_error" else f" ({json.dumps(error['input'], default=str)[:80]})"
    return ApiError(400, f"{name}: {reason}{seen}", param=name, code="invalid_value")


def _path_from_location(
    location: Sequence[str | int], body: object, *, is_missing: bool
) -> list[str]:
    """The names and indices of a place, without the kinds of values that pydantic tried there."""
    path = []
    for part in location:
        is_index = isinstance(body, list) and isinstance(part, int) and part < len(body)
        if is_index or (isinstance(body, dict) and part in body):
            body = body[part]  # type: ignore[index]
            path.append(str(part))
    last = str(location[-1]) if location else ""
    # A field counts as missing also where its null takes the place of a value that is needed.
    return [*path, last] if is_missing and last and path[-1:] != [last] else path


def _rank_error(error: Mapping[str, Any]) -> tuple[int, bool]:
    """Of a union, the part of it that came furthest says best what is wrong."""
    return len(error["loc"]), not error["type"].endswith("_type")
