"""`/v1/chat/completions`."""

import time
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any
from uuid import uuid4

from medusa_trt.errors import MedusaError
from medusa_trt.runtime.decoding.choosing import TokenLogprobs
from medusa_trt.runtime.options import GenerationOptions
from medusa_trt.runtime.reply import Generation
from medusa_trt.runtime.session import MedusaSession
from medusa_trt.runtime.text import ChatPrompt, TextCodec
from medusa_trt.serving.conversion import (
    LEAST_LOGPROB,
    describe_finish,
    describe_step,
    describe_usage,
    options_from_fields,
)
from medusa_trt.serving.errors import ApiError
from medusa_trt.serving.schemas import ChatMessage, ChatRequest
from medusa_trt.serving.service import Replies


def options_from_chat(body: ChatRequest, session: MedusaSession) -> GenerationOptions:
    """Makes the options of the replies.

    Raises:
        ApiError: fields contradict each other, or one cannot be used.
    """
    limits = {body.max_tokens, body.max_completion_tokens} - {None}
    if len(limits) > 1:
        raise ApiError(
            400,
            "max_tokens and max_completion_tokens differ: give the second one alone",
            param="max_tokens",
            code="invalid_value",
        )
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(
            400,
            "top_logprobs needs logprobs: true",
            param="top_logprobs",
            code="invalid_value",
        )
    return options_from_fields(
        body,
        session,
        max_new_tokens=next(iter(limits), None),
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
    )


def encode_messages(
    messages: Sequence[ChatMessage], text: TextCodec, variables: dict[str, Any] | None = None
) -> list[int]:
    """Encodes a conversation with the model's chat template.

    Raises:
        ApiError: there is no template, or it refuses the conversation.
    """
    plain = []
    for message in messages:
        values = message.model_dump(exclude_none=True)
        # OpenAI's newer name; the templates of open models know the older one.
        plain.append(values | {"role": "system"} if message.role == "developer" else values)
    try:
        return text.encode_chat(ChatPrompt(messages=plain, variables=variables or {}))
    except MedusaError as error:
        raise ApiError(400, str(error), param="messages", code="invalid_value") from error


def check_tools(body: ChatRequest) -> None:
    """Refuses tools.

    Raises:
        ApiError: the request has tools.
    """
    for name in ("tools", "tool_choice"):
        if getattr(body, name):
            message = f"{name}: this server does not read tool calls from replies: leave it out"
            raise ApiError(400, message, param=name, code="unsupported_parameter")


class ChatReplies:
    """Describes the replies to one request as OpenAI does."""

    def __init__(self, body: ChatRequest, model_name: str, text: TextCodec) -> None:
        """Chooses the id and the time that all parts of a stream share."""
        self._body, self._text = body, text
        self._head = {
            "id": f"chatcmpl-{uuid4().hex}",
            "created": int(time.time()),
            "model": model_name,
        }

    def describe(self, generations: Sequence[Generation]) -> dict[str, Any]:
        """Describes finished replies."""
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": generation.text, "refusal": None},
                "logprobs": self._describe_logprobs(generation.logprobs),
                "finish_reason": describe_finish(generation),
            }
            for index, generation in enumerate(generations)
        ]
        return {
            **self._head,
            "object": "chat.completion",
            "choices": choices,
            "usage": describe_usage(generations, self._body.n),
        }

    async def stream(self, replies: Replies) -> AsyncIterator[dict[str, Any]]:
        """Describes growing replies, part by part.

        Raises:
            ApiError: a reply failed or was cancelled.
        """
        done: dict[int, Generation] = {}
        num_tokens = [0] * self._body.n
        has_begun = [False] * self._body.n
        async for index, event in replies.events():
            logprobs = replies.requests[index].reply.logprobs
            start = num_tokens[index]
            num_tokens[index] += len(event.token_ids)
            if not (event.text or event.token_ids or event.generation):
                continue
            delta = {} if has_begun[index] else {"role": "assistant"}
            has_begun[index] = True
            delta["content"] = event.text
            yield self._describe_chunk(
                {
                    "index": index,
                    "delta": delta,
                    "logprobs": self._describe_logprobs(logprobs[start : num_tokens[index]]),
                    "finish_reason": describe_finish(event.generation),
                    **describe_step(event.step, self._text),
                }
            )
            if event.generation is not None:
                done[index] = event.generation
        options = self._body.stream_options
        if options is not None and options.include_usage:
            usage = describe_usage([done[index] for index in sorted(done)], self._body.n)
            yield self._describe_chunk(None) | {"usage": usage}

    def _describe_chunk(self, choice: dict[str, Any] | None) -> dict[str, Any]:
        return {
            **self._head,
            "object": "chat.completion.chunk",
            "choices": [] if choice is None else [choice],
        }

    def _describe_logprobs(self, entries: Iterable[TokenLogprobs]) -> dict[str, Any] | None:
        if not self._body.logprobs:
            return None
        content = [
            self._describe_token(entry.token, entry.logprob)
            | {"top_logprobs": [self._describe_token(*pair) for pair in entry.top]}
            for entry in entries
        ]
        return {"content": content, "refusal": None}

    def _describe_token(self, token_id: int, logprob: float) -> dict[str, Any]:
        data = self._text.token_bytes(token_id)
        return {
            "token": data.decode("utf-8", "replace"),
            "logprob": max(logprob, LEAST_LOGPROB),
            "bytes": list(data),
        }
