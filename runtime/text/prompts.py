"""Prompts: a text, token ids, or a conversation."""

import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

import numpy as np

from medusa_trt.errors import PromptError
from medusa_trt.types_of_options import check_types

Message = Mapping[str, Any]
"""A message: "role", "content", and what else the chat template reads.

The content is text, None, or a list of parts as in OpenAI's API: `{"type": "text", "text": …}`.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatPrompt:
    """A conversation, and what else its chat template reads.

    Attributes:
        messages: the conversation. Where the last message is the assistant's, the reply goes on
            with it.
        tools: the functions that the model may call, as in OpenAI's API.
        variables: further values that the template reads, such as `enable_thinking`.
    """

    messages: Sequence[Message]
    tools: Sequence[Mapping[str, Any]] = ()
    variables: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_types(self, PromptError)
        for number, message in enumerate(self.messages, start=1):
            if not isinstance(role := message.get("role"), str):
                raise PromptError(
                    f"message {number} has the role {role!r}: give a text, as system, user or "
                    "assistant"
                )

    @property
    def begun_reply(self) -> str:
        """The text of a last message by the assistant; empty if there is none."""
        if not self.messages or self.messages[-1].get("role") != "assistant":
            return ""
        text: str = message_with_plain_content(self.messages[-1], "")["content"]
        return text if text.strip() else ""


Prompt = str | Sequence[int] | Sequence[Message] | ChatPrompt
"""Text, token ids, or the messages of a conversation, alone or with tools for the template."""

_READS_PARTS = re.compile(r"for\s+\w+\s+in\s+\w+(\.content\b|\[['\"]content['\"]\])")
"""A template that goes through the parts of a message's content."""


def read_prompt(prompt: Prompt) -> str | list[int] | ChatPrompt:
    """Finds out which kind of prompt this is; arrays of numpy may hold token ids.

    Raises:
        PromptError: it is none, or holds something that does not belong there.
    """
    if isinstance(prompt, str | ChatPrompt):
        return prompt
    items: Any = prompt.tolist() if isinstance(prompt, np.ndarray) else prompt
    if not isinstance(items, Sequence) or isinstance(items, bytes | bytearray):
        raise PromptError(f"the prompt is {reprlib.repr(prompt)}: give text, token ids or messages")
    if all(isinstance(item, Mapping) for item in items) and items:
        return ChatPrompt(messages=items)
    for item in items:
        if not isinstance(item, Integral) or isinstance(item, bool):
            raise PromptError(
                f"the prompt holds {reprlib.repr(item)}: give a text, a sequence of "
                "token ids, or a sequence of messages"
            )
    return [int(item) for item in items]


def read_prompts(prompts: Iterable[Prompt]) -> list[Prompt]:
    """Makes a list of several prompts.

    Raises:
        PromptError: it is a single text, or nothing that holds prompts.
    """
    if isinstance(prompts, str | bytes) or not isinstance(prompts, Iterable):
        raise PromptError(f"prompts is {reprlib.repr(prompts)}: it must be a sequence of prompts")
    return list(prompts)


def is_begun(prompt: Prompt) -> bool:
    """Whether the prompt ends in the beginning of its reply."""
    read = read_prompt(prompt)
    return isinstance(read, ChatPrompt) and bool(read.begun_reply)


def message_with_plain_content(message: Message, template: str) -> dict[str, Any]:
    """Makes a message with text as its content, unless the template reads lists of parts."""
    content = message.get("content")
    if content is None:
        return {**message, "content": ""}
    if isinstance(content, str):
        return dict(message)
    texts = []
    for part in content if isinstance(content, list) else [content]:
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        if kind != "text" or not isinstance(part.get("text"), str):
            raise PromptError(
                f"a message holds a part of type {kind!r}: this model reads text, as a string or "
                'as parts {"type": "text", "text": ...}'
            )
        texts.append(part["text"])
    return (
        dict(message) if _READS_PARTS.search(template) else {**message, "content": "".join(texts)}
    )
