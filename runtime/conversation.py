"""A conversation, and the file that saves it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import msgspec

from medusa_trt.errors import MedusaError, PromptError
from medusa_trt.files import replace_file
from medusa_trt.runtime.options import AcceptanceName, GenerationOptions, SamplingOptions
from medusa_trt.runtime.text.prompts import Message


@dataclass(frozen=True, slots=True)
class Exchange:
    """A user's message and the reply to it."""

    user: str
    assistant: str


@dataclass(slots=True)
class Conversation:
    """Complete exchanges below an optional system message.

    A message is added together with its reply. So a failed reply leaves no message behind, and
    roles always alternate, as chat templates expect.

    Attributes:
        system: the system message, if any.
        exchanges: messages and replies, the oldest first.
    """

    system: str | None = None
    exchanges: list[Exchange] = field(default_factory=list)

    def messages(self, user: str | None = None) -> list[Message]:
        """Messages of the conversation, and the user's next message if it is given."""
        messages: list[Message] = []
        if self.system is not None:
            messages.append({"role": "system", "content": self.system})
        for exchange in self.exchanges:
            messages.append({"role": "user", "content": exchange.user})
            messages.append({"role": "assistant", "content": exchange.assistant})
        if user is not None:
            messages.append({"role": "user", "content": user})
        return messages

    def add(self, user: str, assistant: str) -> None:
        """Appends a message and its reply."""
        self.exchanges.append(Exchange(user, assistant))

    @property
    def last(self) -> Exchange:
        """The last exchange.

        Raises:
            PromptError: there is no exchange yet.
        """
        if not self.exchanges:
            raise PromptError("there is no reply yet: say something first")
        return self.exchanges[-1]

    def make_messages_of_last(self) -> list[Message]:
        """Messages before the last reply; see `last`."""
        return Conversation(self.system, self.exchanges[:-1]).messages(self.last.user)

    def replace_last(self, assistant: str) -> None:
        """Replaces the last reply; see `last`."""
        self.exchanges[-1] = Exchange(self.last.user, assistant)


@dataclass(frozen=True, slots=True)
class SavedConversation:
    """The content of a saved conversation's file.

    Attributes:
        model: model name of the bundle.
        options: distribution, acceptance and maximum length of the replies. The tree is not saved,
            because it is chosen for a machine.
        conversation: the conversation.
    """

    model: str
    options: GenerationOptions
    conversation: Conversation

    def save(self, path: Path) -> None:
        """Writes the file; an error leaves no incomplete file.

        Raises:
            MedusaError: the file cannot be written.
        """
        with replace_file(path) as temporary:
            temporary.write_bytes(
                msgspec.json.format(msgspec.json.encode(_make_file(self))) + b"\n"
            )

    @classmethod
    def load(cls, path: Path) -> "SavedConversation":
        """Reads a file that `save` wrote.

        Raises:
            MedusaError: the file cannot be read, or was not written by `save`.
        """
        try:
            file = msgspec.json.decode(path.read_bytes(), type=_File)
            options = _read_options(file.options)
            conversation = _read_conversation(file.messages)
        except OSError as error:
            raise MedusaError(f"cannot read {path}: {error.strerror}") from error
        except (ValueError, PromptError) as error:
            raise MedusaError(
                f"{path} is damaged or no saved conversation ({error}): choose one that /save wrote"
            ) from error
        return cls(file.model, options, conversation)


class _Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    role: Literal["system", "user", "assistant"]
    content: str


class _Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The fields of `SamplingOptions`, and two of `GenerationOptions`."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int | None
    acceptance: AcceptanceName | None
    max_new_tokens: int | None


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format_version: Literal[1]
    model: str
    options: _Options
    messages: list[_Message]


def _make_file(saved: SavedConversation) -> _File:
    options = saved.options
    return _File(
        format_version=1,
        model=saved.model,
        options=_Options(
            **asdict(options.sampling),
            acceptance=options.acceptance,
            max_new_tokens=options.max_new_tokens,
        ),
        messages=[msgspec.convert(m, _Message) for m in saved.conversation.messages()],
    )


def _read_options(options: _Options) -> GenerationOptions:
    return GenerationOptions(
        max_new_tokens=options.max_new_tokens,
        acceptance=options.acceptance,
        sampling=msgspec.convert(options, SamplingOptions, from_attributes=True),
    )


def _read_conversation(messages: Sequence[_Message]) -> Conversation:
    system = messages[0].content if messages and messages[0].role == "system" else None
    rest = messages[system is not None :]
    for index, message in enumerate(rest):
        role = ("user", "assistant")[index % 2]
        if message.role != role:
            raise PromptError(
                f"message {index + len(messages) - len(rest) + 1} is from {message.role!r} "
                f"where {role!r} must follow"
            )
    if len(rest) % 2:
        raise PromptError("the last message has no reply")
    pairs = zip(rest[::2], rest[1::2], strict=True)
    return Conversation(system, [Exchange(user.content, reply.content) for user, reply in pairs])
