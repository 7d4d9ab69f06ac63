"""`/v1/completions`: texts that go on, with the log-probabilities that lm-eval reads."""

import time
from collections.abc import AsyncIterator, Sequence
from itertools import accumulate
from typing import Any
from uuid import uuid4

from medusa_trt.runtime.decoding.choosing import TokenLogprobs
from medusa_trt.runtime.options import GenerationOptions
from medusa_trt.runtime.reply import Generation
from medusa_trt.runtime.session import MedusaSession
from medusa_trt.runtime.text.codec import TextCodec
from medusa_trt.serving.conversion import (
    LEAST_LOGPROB,
    describe_chunk_usage,
    describe_finish,
    describe_step,
    describe_usage,
    options_from_fields,
)
from medusa_trt.serving.errors import ApiError
from medusa_trt.serving.requests.schemas import CompletionRequest
from medusa_trt.serving.service import Replies

_DEFAULT_TOKENS = 16
"""Length of a reply where the request names none, as in OpenAI's API."""


def options_from_completion(body: CompletionRequest, session: MedusaSession) -> GenerationOptions:
    """Makes the options of the replies.

    Raises:
        ApiError: fields contradict each other, or one cannot be used.
    """
    max_tokens = _DEFAULT_TOKENS if body.max_tokens is None else body.max_tokens
    if max_tokens == 0 and (not body.echo or body.stream):
        raise ApiError(
            400,
            "max_tokens is 0: this is for echo: true without a stream; give at least 1",
            param="max_tokens",
            code="invalid_value",
        )
    if body.best_of not in (None, body.n):
        raise ApiError(
            400,
            f"best_of is {body.best_of}: every reply that is made is sent, so it can be n alone "
            f"({body.n}): leave it out",
            param="best_of",
            code="invalid_value",
        )
    return options_from_fields(
        body,
        session,
        max_new_tokens=max(max_tokens, 1),
        logprobs=body.logprobs,
        prompt_logprobs=body.echo and body.logprobs is not None,
    )


def encode_prompts(body: CompletionRequest, session: MedusaSession) -> list[list[int]]:
    """Encodes each prompt as token ids.

    Raises:
        MedusaError: a prompt is not valid Unicode.
    """
    prompt = body.prompt
    if isinstance(prompt, str):
        return [session.encode(prompt)]
    if isinstance(prompt[0], int):
        return [[token for token in prompt if isinstance(token, int)]]
    return [session.encode(text) for text in prompt if not isinstance(text, int)]


class CompletionReplies:
    """Describes the replies to one request as OpenAI does."""

    def __init__(self, body: CompletionRequest, model_name: str, text: TextCodec) -> None:
        """Chooses the id and the time that all parts of a stream share."""
        self._body, self._text = body, text
        self._head = {
            "id": f"cmpl-{uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model_name,
        }

    def describe(
        self, generations: Sequence[Generation], prompts: Sequence[Sequence[int]]
    ) -> dict[str, Any]:
        """Describes finished replies; each prompt has as many as the request's `n`."""
        choices = []
        for index, generation in enumerate(generations):
            prompt_ids = prompts[index // self._body.n]
            prompt = self._text.decode(prompt_ids)
            text, entries = generation.text, generation.logprobs
            if self._body.max_tokens == 0:
                text, entries = "", ()
            if self._body.echo:
                text = prompt + text
            described = self._describe_logprobs(
                entries,
                prompt_ids if self._body.echo else (),
                generation.prompt_logprobs,
                0 if self._body.echo else len(prompt),
            )
            choices.append(
                {
                    "index": index,
                    "text": text,
                    "logprobs": described,
                    "finish_reason": describe_finish(generation),
                }
            )
        usage = describe_usage(generations, self._body.n)
        if self._body.max_tokens == 0:
            usage |= {"completion_tokens": 0, "total_tokens": usage["prompt_tokens"]}
        return {**self._head, "choices": choices, "usage": usage}

    async def stream(
        self, replies: Replies, prompts: Sequence[Sequence[int]]
    ) -> AsyncIterator[dict[str, Any]]:
        """Describes growing replies, part by part.

        Raises:
            ApiError: a reply failed or was cancelled.
        """
        done: dict[int, Generation] = {}
        shown_tokens = [0] * len(replies.requests)
        offsets: dict[int, int] = {}
        async for index, event in replies.events():
            request = replies.requests[index]
            start = shown_tokens[index]
            shown_tokens[index] += len(event.token_ids)
            if not (event.text or event.token_ids or event.generation):
                continue
            text, prompt_ids = event.text, prompts[index // self._body.n]
            echoed: Sequence[int] = ()
            if index not in offsets:
                prompt = self._text.decode(prompt_ids)
                offsets[index] = 0 if self._body.echo else len(prompt)
                if self._body.echo:
                    text, echoed = prompt + text, prompt_ids
            logprobs = self._describe_logprobs(
                request.reply.logprobs[start : shown_tokens[index]],
                echoed,
                request.state.chooser.prompt_logprobs or (),
                offsets[index],
            )
            offsets[index] += len(text)
            yield self._describe_chunk(
                {
                    "index": index,
                    "text": text,
                    "logprobs": logprobs,
                    "finish_reason": describe_finish(event.generation),
                    **describe_step(event.step, self._text),
                }
            ) | describe_chunk_usage(self._body, replies.prompt_tokens, shown_tokens)
            if event.generation is not None:
                done[index] = event.generation
        if self._body.shows_usage:
            usage = describe_usage([done[index] for index in sorted(done)], self._body.n)
            yield self._describe_chunk() | {"usage": usage}

    def _describe_chunk(self, *choices: dict[str, Any]) -> dict[str, Any]:
        return {**self._head, "choices": choices}

    def _describe_logprobs(
        self,
        entries: Sequence[TokenLogprobs],
        prompt_ids: Sequence[int],
        prompt_entries: Sequence[TokenLogprobs],
        offset: int,
    ) -> dict[str, Any] | None:
        """Describes the tokens of a prompt, if any, and of its reply.

        Args:
            entries: of the reply.
            prompt_ids: the tokens of an echoed prompt.
            prompt_entries: of the prompt, without its first token, which nothing predicts.
            offset: number of characters before the first token.
        """
        if self._body.logprobs is None:
            return None
        firsts = [(self._name(token), None, None) for token in prompt_ids[:1]]
        shown = [*prompt_entries, *entries] if prompt_ids else entries
        rows = [
            *firsts,
            *(
                (
                    self._name(entry.token),
                    max(entry.logprob, LEAST_LOGPROB),
                    {
                        self._name(token): max(logprob, LEAST_LOGPROB)
                        for token, logprob in (*entry.top, (entry.token, entry.logprob))
                    },
                )
                for entry in shown
            ),
        ]
        names = [name for name, _, _ in rows]
        return {
            "tokens": names,
            "token_logprobs": [logprob for _, logprob, _ in rows],
            "top_logprobs": [top for _, _, top in rows],
            "text_offset": list(accumulate(map(len, names[:-1]), initial=offset)) if names else [],
        }

    def _name(self, token_id: int) -> str:
        """The text of a token; of one that is no whole text, its bytes, as OpenAI writes them."""
        data = self._text.token_bytes(token_id)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
