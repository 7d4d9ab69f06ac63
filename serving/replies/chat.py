"""`/v1/chat/completions`."""

import json
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any
from uuid import uuid4

from medusa_trt.errors import MedusaError
from medusa_trt.runtime.decoding.choosing import TokenLogprobs
from medusa_trt.runtime.options import GenerationOptions
from medusa_trt.runtime.reply import Generation
from medusa_trt.runtime.session import MedusaSession
from medusa_trt.runtime.text.codec import TextCodec
from medusa_trt.runtime.text.prompts import ChatPrompt
from medusa_trt.serving.conversion import (
    LEAST_LOGPROB,
    describe_chunk_usage,
    describe_step,
    describe_usage,
    options_from_fields,
)
from medusa_trt.serving.errors import ApiError, error_from_medusa
from medusa_trt.serving.requests.messages import ChatMessage, ToolCall
from medusa_trt.serving.requests.schemas import ChatRequest
from medusa_trt.serving.service import Replies
from medusa_trt.serving.tools.choice import ToolChoice
from medusa_trt.serving.tools.forms import ToolTemplate
from medusa_trt.serving.tools.message import GrowingMessage


def options_from_chat(
    body: ChatRequest, session: MedusaSession, tools: ToolChoice | None
) -> GenerationOptions:
    """Makes the options of the replies, which may use these tools.

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
    options = options_from_fields(
        body,
        session,
        max_new_tokens=next(iter(limits), None),
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
    )
    if tools is None:
        return options
    if options.grammar is not None:
        message = "tools: they exclude response_format, regex and grammar: give one of them"
        raise ApiError(400, message, param="tools", code="invalid_value")
    try:
        return replace(options, grammar=tools.grammar)
    except MedusaError as error:
        raise error_from_medusa(error, body) from error


def encode_messages(
    messages: Sequence[ChatMessage],
    template: ToolTemplate,
    tools: ToolChoice | None = None,
    variables: Mapping[str, Any] | None = None,
) -> list[int]:
    """Encodes a conversation with the model's chat template.

    Raises:
        ApiError: there is no template, or it refuses the conversation or does not read a variable.
    """
    plain = []
    for index, message in enumerate(messages):
        values = message.model_dump(exclude_none=True, exclude={"annotations"})
        if message.tool_calls is not None:
            values["tool_calls"] = _convert_calls(message.tool_calls, template, index)
        # OpenAI's newer name; the templates of open models know the older one.
        plain.append(values | {"role": "system"} if message.role == "developer" else values)
    try:
        template.text.check_variables(variables or {})
    except MedusaError as error:
        place = "chat_template_kwargs"
        raise ApiError(400, f"{place}: {error}", param=place, code="invalid_value") from error
    shown = () if tools is None else tools.tools
    try:
        prompt = ChatPrompt(messages=plain, tools=shown, variables=variables or {})
        return template.text.encode_chat(prompt)
    except MedusaError as error:
        raise ApiError(400, str(error), param="messages", code="invalid_value") from error


def _convert_calls(
    calls: Sequence[ToolCall], template: ToolTemplate, index: int
) -> list[dict[str, Any]]:
    """Makes the calls in a message what the chat template reads.

    Raises:
        ApiError: the template does not show calls, or arguments are no JSON object.
    """
    place = f"messages.{index}.tool_calls"
    try:
        takes_text = template.form.takes_text
    except MedusaError as error:
        raise ApiError(
            400, f"{place}: {error}", param=place, code="unsupported_parameter"
        ) from error
    converted = []
    for number, call in enumerate(calls):
        values = call.model_dump()
        try:
            arguments = json.loads(call.function.arguments or "{}")
        except ValueError:
            arguments = None
        if not isinstance(arguments, dict):
            param = f"{place}.{number}.function.arguments"
            message = f"{param}: it is no JSON object: {call.function.arguments[:80]!r}"
            raise ApiError(400, message, param=param, code="invalid_value")
        if not takes_text:
            values["function"]["arguments"] = arguments
        converted.append(values)
    return converted


class ChatReplies:
    """Describes the replies to one request as OpenAI does."""

    def __init__(
        self, body: ChatRequest, model_name: str, text: TextCodec, tools: ToolChoice | None
    ) -> None:
        """Chooses the id and the time that all parts of a stream share."""
        self._body, self._text, self._tools = body, text, tools
        self._head = {
            "id": f"chatcmpl-{uuid4().hex}",
            "created": int(time.time()),
            "model": model_name,
        }

    def describe(self, generations: Sequence[Generation]) -> dict[str, Any]:
        """Describes finished replies."""
        choices = []
        for index, generation in enumerate(generations):
            message = GrowingMessage(self._tools)
            added = message.add(generation.text, is_last=True)
            for call in added.get("tool_calls", ()):
                del call["index"]  # Only a stream has it.
            choices.append(
                {
                    "index": index,
                    "message": {"role": "assistant", "content": None, "refusal": None} | added,
                    "logprobs": self._describe_logprobs(generation.logprobs),
                    "finish_reason": message.describe_finish(generation),
                }
            )
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
        messages = [GrowingMessage(self._tools) for _ in num_tokens]
        has_begun = [False] * self._body.n
        async for index, event in replies.events():
            logprobs = replies.requests[index].reply.logprobs
            start = num_tokens[index]
            num_tokens[index] += len(event.token_ids)
            if not (event.text or event.token_ids or event.generation):
                continue
            delta = messages[index].add(event.text, is_last=event.generation is not None)
            if not (delta or event.generation or event.step or self._body.logprobs):
                continue
            if not has_begun[index]:
                has_begun[index] = True
                delta = {"role": "assistant"} | delta
            yield self._describe_chunk(
                {
                    "index": index,
                    "delta": delta,
                    "logprobs": self._describe_logprobs(logprobs[start : num_tokens[index]]),
                    "finish_reason": messages[index].describe_finish(event.generation),
                    **describe_step(event.step, self._text),
                }
            ) | describe_chunk_usage(self._body, replies.prompt_tokens, num_tokens)
            if event.generation is not None:
                done[index] = event.generation
        if self._body.shows_usage:
            usage = describe_usage([done[index] for index in sorted(done)], self._body.n)
            yield self._describe_chunk() | {"usage": usage}

    def _describe_chunk(self, *choices: dict[str, Any]) -> dict[str, Any]:
        return {**self._head, "object": "chat.completion.chunk", "choices": choices}

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
