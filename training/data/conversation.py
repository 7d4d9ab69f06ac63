"""Conversations as token ids: what a chat template puts around the turns, and whose they are."""

from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from medusa_trt.errors import TrainingError

_MARKS = ("MEDUSAFIRST", "MEDUSAREPLY", "MEDUSANEXT")


@dataclass(slots=True)
class Conversation:
    """A conversation so far.

    Attributes:
        token_ids: everything said, with the template's tokens.
        turns: as long; 0 for what the model did not say as an assistant, n in its n-th reply.
    """

    token_ids: list[int] = field(default_factory=list)
    turns: list[int] = field(default_factory=list)

    def add(self, token_ids: list[int], turn: int = 0) -> None:
        """Appends tokens of one speaker."""
        self.token_ids += token_ids
        self.turns += [turn] * len(token_ids)


@dataclass(frozen=True, slots=True)
class ChatFrame:
    """The text around the turns of a conversation, found by rendering the model's template.

    Attributes:
        before_user: begins a conversation.
        before_reply: between what the user says and the reply.
        after_reply: from the end of a reply to the user's next turn.
        has_template: false for a model that only continues text.
    """

    before_user: str
    before_reply: str
    after_reply: str
    has_template: bool

    @classmethod
    def from_tokenizer(cls, tokenizer: PreTrainedTokenizerBase) -> "ChatFrame":
        """Renders a conversation of marked turns and takes it apart.

        Raises:
            TrainingError: the template changes or leaves out the turns.
        """
        if tokenizer.chat_template is None:
            return cls("", "", "", has_template=False)
        roles = ("user", "assistant", "user")
        messages = [
            {"role": role, "content": mark} for role, mark in zip(roles, _MARKS, strict=True)
        ]
        text = str(
            tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        )
        parts = []
        for mark in _MARKS:
            part, found, text = text.partition(mark)
            if not found:
                raise TrainingError(
                    "the model's chat template does not show every turn as it was said: "
                    "give the tokenizer a plainer chat_template"
                )
            parts.append(part)
        # `text` is now what follows the last user turn: it opens the reply without the extras
        # that some templates give to earlier replies.
        return cls(parts[0], text, parts[2], has_template=True)

    def opening(self, tokenizer: PreTrainedTokenizerBase, user: str) -> list[int]:
        """Token ids up to the first reply."""
        return self._ids(tokenizer, self.before_user + user + self.before_reply)

    def user_prefix(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """Token ids up to the first user turn."""
        return self._ids(tokenizer, self.before_user)

    def next_user_prefix(self, tokenizer: PreTrainedTokenizerBase, reply: list[int]) -> list[int]:
        """Token ids between a reply and the user's next turn; `reply` may hold its end token."""
        text = self.after_reply
        end = str(tokenizer.decode(reply[-1:])) if reply else ""
        return self._ids(tokenizer, text.removeprefix(end) if end else text)

    def next_turn(
        self, tokenizer: PreTrainedTokenizerBase, reply: list[int], user: str
    ) -> list[int]:
        """Token ids between a reply and the next one, with what the user says."""
        prefix = self.next_user_prefix(tokenizer, reply)
        return prefix + self._ids(tokenizer, user + self.before_reply)

    def _ids(self, tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=not self.has_template)["input_ids"]
        return ids
