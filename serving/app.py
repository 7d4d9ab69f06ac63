"""The application: its routes, and what stands before them."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from medusa_trt import __version__
from medusa_trt.errors import MedusaError
from medusa_trt.runtime.session import MedusaSession
from medusa_trt.serving.errors import ApiError, add_error_replies, error_from_medusa
from medusa_trt.serving.limits import Gate
from medusa_trt.serving.log import write_line
from medusa_trt.serving.options import ServingOptions
from medusa_trt.serving.page import add_page
from medusa_trt.serving.replies.chat import ChatReplies, encode_messages, options_from_chat
from medusa_trt.serving.replies.completions import (
    CompletionReplies,
    encode_prompts,
    options_from_completion,
)
from medusa_trt.serving.replies.streaming import EventStream
from medusa_trt.serving.requests.schemas import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    ErrorBody,
    TokenizeRequest,
)
from medusa_trt.serving.service import Service
from medusa_trt.serving.tools.choice import choose_tools


def make_app(
    session: MedusaSession,
    options: ServingOptions,
    *,
    log: Callable[[dict[str, object]], None] = write_line,
) -> FastAPI:
    """Makes the application, whose `state.service` is the service.

    Args:
        session: has a slot for each of `max_sequences`; nobody else may use it.
        options: the limits and the keys.
        log: writes what it gets as one line.

    Raises:
        ServingError: the file of keys cannot be read.
    """
    service = Service(session, options)

    @asynccontextmanager
    async def run_worker(app: FastAPI) -> AsyncIterator[None]:
        service.worker.start(asyncio.get_running_loop())
        yield
        # The engine's step is not to hold up the loop, to which it hands its events.
        await asyncio.to_thread(service.worker.stop)

    app = FastAPI(
        title="medusa-trt",
        version=__version__,
        lifespan=run_worker,
        responses={kind: {"model": ErrorBody} for kind in ("4XX", "5XX")},
        docs_url=None,
        redoc_url=None,
    )
    app.state.service = service
    add_error_replies(app)

    def note(described: dict[str, object]) -> None:
        service.metrics.note_answer(described, {getattr(route, "path", "") for route in app.routes})
        log(described)

    app.add_middleware(Gate, options=options, api_keys=options.read_api_keys(), log=note)
    _add_replies(app, service)
    _add_tokens(app, service)
    _add_states(app, service)
    add_page(app)
    return app


def _add_replies(app: FastAPI, service: Service) -> None:
    """Adds the routes that make replies."""
    session, template = service.session, service.tool_template

    @app.post("/v1/chat/completions", response_model=None)
    async def complete_chat(body: ChatRequest, request: Request) -> Response:
        """Replies to a conversation."""
        service.check_model(body.model)
        tools = choose_tools(body, template)
        options = options_from_chat(body, session, tools)
        prompt = await asyncio.to_thread(
            encode_messages, body.messages, template, tools, body.chat_template_kwargs
        )
        shown_ids = () if tools is None else template.shown_ids
        record = request.state.record
        replies = await service.start_replies(body, [prompt], options, record, shown_ids)
        shown = ChatReplies(body, service.model_name, session.text, tools)
        if body.stream:
            return EventStream(replies, shown.stream(replies))
        async with replies.watch_client(request.receive):
            return JSONResponse(shown.describe(await replies.finish()))

    @app.post("/v1/completions", response_model=None)
    async def complete_text(body: CompletionRequest, request: Request) -> Response:
        """Goes on with a text."""
        service.check_model(body.model)
        options = options_from_completion(body, session)
        try:
            prompts = await asyncio.to_thread(encode_prompts, body, session)
        except MedusaError as error:
            raise error_from_medusa(error, body) from error
        replies = await service.start_replies(body, prompts, options, request.state.record)
        shown = CompletionReplies(body, service.model_name, session.text)
        if body.stream:
            return EventStream(replies, shown.stream(replies, prompts))
        async with replies.watch_client(request.receive):
            return JSONResponse(shown.describe(await replies.finish(), prompts))


def _add_tokens(app: FastAPI, service: Service) -> None:
    """Adds the routes between text and tokens, in the form that vLLM has them."""
    text = service.session.text

    @app.post("/tokenize")
    async def tokenize(body: TokenizeRequest) -> dict[str, Any]:
        """Encodes a text or a conversation."""
        service.check_model(body.model)
        if (body.prompt is None) == (body.messages is None):
            message = "give one of prompt and messages"
            raise ApiError(400, message, param="prompt", code="invalid_value")
        try:
            if body.messages is not None:
                ids = await asyncio.to_thread(encode_messages, body.messages, service.tool_template)
            else:
                ids = await asyncio.to_thread(
                    text.encode, body.prompt or "", add_special_tokens=body.add_special_tokens
                )
        except MedusaError as error:
            raise error_from_medusa(error, body) from error
        return {"count": len(ids), "max_model_len": service.session.max_length, "tokens": ids}

    @app.post("/detokenize")
    async def detokenize(body: DetokenizeRequest) -> dict[str, Any]:
        """Decodes tokens as text, without special tokens."""
        service.check_model(body.model)
        size = service.session.bundle.manifest.model.vocab_size
        if body.tokens and max(body.tokens) >= size:
            message = f"tokens: {max(body.tokens)} is beyond the last token, {size - 1}"
            raise ApiError(400, message, param="tokens", code="invalid_value")
        return {"prompt": await asyncio.to_thread(text.decode, body.tokens)}


def _add_states(app: FastAPI, service: Service) -> None:
    """Adds the routes that say how the server is."""
    started = int(time.time())

    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        """Lists the one model of this server."""
        return {"object": "list", "data": [describe_model()]}

    @app.get("/v1/models/{name:path}")
    async def get_model(name: str) -> dict[str, Any]:
        """Describes a model."""
        service.check_model(name)
        return describe_model()

    @app.get("/health")
    async def check_health() -> dict[str, str]:
        """Says whether the server works at all; if it does not, restart it."""
        if not service.worker.is_alive:
            raise ApiError(503, "the scheduler has ended: restart the server", code="not_alive")
        return {"status": "ok"}

    @app.get("/ready")
    async def check_readiness() -> dict[str, str]:
        """Says whether the server takes requests."""
        if service.is_draining or not service.worker.is_alive:
            raise ApiError(503, "this server takes no requests", code="shutting_down")
        return {"status": "ready"}

    @app.get("/metrics", response_class=PlainTextResponse)
    async def get_metrics() -> Response:
        """Shows the measurements in Prometheus's text format."""
        return PlainTextResponse(service.metrics.render(), media_type="text/plain; version=0.0.4")

    def describe_model() -> dict[str, Any]:
        return {
            "id": service.model_name,
            "object": "model",
            "created": started,
            "owned_by": "medusa-trt",
            "max_model_len": service.session.max_length,
        }
