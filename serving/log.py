"""One line of JSON for each request; it never holds a prompt or a reply."""

import json
import sys
import traceback
from dataclasses import dataclass, field
from datetime import datetime, timezone
from time import perf_counter
from uuid import uuid4

from medusa_trt.serving.errors import ApiError


@dataclass(slots=True)
class RequestRecord:
    """What is known of a request when it ends.

    Attributes:
        method, path: what was asked for.
        id: the value of the reply's header `x-request-id`.
        start_s: when the request began, by `perf_counter`.
        status: the status of the reply; 499 if the client left before it.
        client: the fields by which the client names itself or its user.
        is_streamed: whether the reply was streamed.
        num_choices: number of replies to the prompts.
        prompt_tokens, cached_tokens, completion_tokens: counts over all choices.
        accepted_tokens: tokens of the replies that were drafts.
        finish_reasons: of all choices.
        first_token_s: seconds from the beginning to the first token.
        error: the code and the field of an error.
    """

    method: str
    path: str
    id: str = field(default_factory=lambda: uuid4().hex)
    start_s: float = field(default_factory=perf_counter)
    status: int = 499
    client: dict[str, str] = field(default_factory=dict)
    is_streamed: bool = False
    num_choices: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    accepted_tokens: int = 0
    finish_reasons: list[str] = field(default_factory=list)
    first_token_s: float | None = None
    error: str | None = None

    def note_error(self, error: ApiError) -> None:
        """Keeps what is known of an error; a client's error message may quote its prompt."""
        self.error = (
            error.message
            if error.status >= 500
            else " ".join(filter(None, [error.code, error.param]))
        )

    def describe(self) -> dict[str, object]:
        """What the log says; only requests for replies have counts of tokens."""
        described: dict[str, object] = {
            "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
            "request": self.id,
            "method": self.method,
            "path": self.path,
            "status": self.status,
            "ms": round(1e3 * (perf_counter() - self.start_s), 1),
        }
        if self.num_choices:
            described |= {
                "stream": self.is_streamed,
                "choices": self.num_choices,
                "prompt_tokens": self.prompt_tokens,
                "cached_tokens": self.cached_tokens,
                "completion_tokens": self.completion_tokens,
                "accepted_tokens": self.accepted_tokens,
                "finish": self.finish_reasons,
            }
        if self.first_token_s is not None:
            described["first_token_ms"] = round(1e3 * self.first_token_s, 1)
        described |= self.client
        if self.error is not None:
            described["error"] = self.error
        return described


def write_line(described: dict[str, object]) -> None:
    """Writes a line to standard error, in ASCII."""
    print(json.dumps(described), file=sys.stderr, flush=True)


def write_fault(error: BaseException) -> None:
    """Writes an error that nobody expected, with its traceback."""
    lines = "".join(traceback.format_exception(error))
    time = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    write_line({"time": time, "fault": repr(error), "traceback": lines})
