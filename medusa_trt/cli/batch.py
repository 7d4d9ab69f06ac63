"""Replies to the requests of a batch file, several of which run together."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medusa_trt.calibration.progress import Progress
from medusa_trt.cli.requests import Request, describe_reply, print_json
from medusa_trt.errors import GenerationError, MedusaError, PromptError
from medusa_trt.interrupts import find_interrupt_code
from medusa_trt.runtime import scheduler
from medusa_trt.runtime.reply import Generation
from medusa_trt.runtime.session import MedusaSession


def answer_batch(session: MedusaSession, requests: list[Request], path: Path) -> int:
    """Writes the results of the requests in their order; an error of one is its result.

    Args:
        session: runs as many replies together as it has slots.
        requests: the requests of the file.
        path: the file, for messages.

    Returns:
        The exit code.

    Raises:
        MedusaError: a request cannot be used with this bundle, or the replies to some failed.
    """
    for request in requests:
        try:
            next(request.make_replies(session))
        except MedusaError as error:
            raise PromptError(f"line {request.line} of {path}: {error}") from error
    places = [
        (index, reply) for index, request in enumerate(requests) for reply in range(request.n)
    ]
    progress, num_done, num_failed = Progress(len(places), "replies"), 0, 0
    try:
        for (index, reply), result in zip(
            places, session.answer(_make_replies(session, requests)), strict=True
        ):
            described = _describe_result(session, requests[index], reply, result)
            print_json({"request": index} | described)
            num_done += 1
            num_failed += "error" in described
            progress.advance()
    except KeyboardInterrupt:
        progress.end()
        print(f"interrupted: {num_done} of {len(places)} replies done", file=sys.stderr)
        return find_interrupt_code()
    progress.end()
    if num_failed:
        raise MedusaError(
            f'replies that failed: {num_failed} of {len(places)}; see "error" in their results'
        )
    return 0


def _make_replies(session: MedusaSession, requests: list[Request]) -> Iterator[scheduler.Request]:
    for request in requests:
        yield from request.make_replies(session)


def _describe_result(
    session: MedusaSession, request: Request, reply: int, result: Generation | MedusaError
) -> dict[str, Any]:
    """Describes a reply, or the error that ended it and what it had made before."""
    if not isinstance(result, MedusaError):
        return describe_reply(session, request, reply, result)
    partial = result.generation if isinstance(result, GenerationError) else None
    if isinstance(partial, Generation):
        described = describe_reply(session, request, reply, partial)
    else:
        described = request.describe_place(reply)
    return described | {"error": str(result)}
