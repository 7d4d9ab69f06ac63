"""Conversations as token ids, and the text that a chat template puts around their turns."""

from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from medusa_trt.errors import TrainingError

_MARKS = ("MEDUSAFIRST", "MEDUSAREPLY", "MEDUSANEXT")


@dataclass(slots=True)
class Conversation:
    """A conversation so far.

    Attributes:
        token_ids: all turns with the template's tokens.
        turns: one number for each token: n in the model's n-th reply, 0 outside of replies.
    """

    token_ids: list[int] = field(default_factory=list)
    turns: list[int] = field(default_factory=list)

    def add(self, token_ids: list[int], turn: int = 0) -> None:
        """Appends tokens; `turn` is 0 outside of replies."""
        self.token_ids += token_ids
        self.turns += [turn] * len(token_ids)


@dataclass(frozen=True, slots=True)
class ChatFrame:
    """The text that a model's chat template puts around the turns of a conversation.

    Attributes:
        before_user: text before the first user turn.
        before_reply: text between a user turn and the reply.
        after_reply: text between a reply and the next user turn.
        has_template: false for a base model, which only continues text.
    """

    before_user: str
    before_reply: str
    after_reply: str
    has_template: bool

    @classmethod
    def from_tokenizer(cls, tokenizer: PreTrainedTokenizerBase) -> "ChatFrame":
        """Renders a conversation of marked turns and splits it at the marks.

        Raises:
            TrainingError: the template changes the turns or leaves some out.
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
            part, separator, text = text.partition(mark)
            if not separator:
                raise TrainingError(
                    "the model's chat template does not show every turn unchanged: "
                    "give the tokenizer a simpler chat_template"
                )
            parts.append(part)
        # `text` now follows the last user turn and opens a reply. Before earlier replies, some
        # templates add other text (parts[1]), which does not belong before a new one.
        return cls(parts[0], text, parts[2], has_template=True)

    def encode_opening(self, tokenizer: PreTrainedTokenizerBase, user: str) -> list[int]:
        """Encodes the first user turn, up to the first reply."""
        return self._encode(tokenizer, self.before_user + user + self.before_reply)

    def encode_user_prefix(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """Encodes the text before the first user turn."""
        return self._encode(tokenizer, self.before_user)

    def encode_next_user_prefix(
        self, tokenizer: PreTrainedTokenizerBase, reply: list[int]
    ) -> list[int]:
        """Encodes the text between a reply and the next user turn.

        An end token of `reply` is not repeated.
        """
        text = self.after_reply
        end = str(tokenizer.decode(reply[-1:])) if reply else ""
        return self._encode(tokenizer, text.removeprefix(end) if end else text)

    def encode_next_turn(
        self, tokenizer: PreTrainedTokenizerBase, reply: list[int], user: str
    ) -> list[int]:
        """Encodes the next user turn, from the end of `reply` up to the next reply."""
        prefix = self.encode_next_user_prefix(tokenizer, reply)
        return prefix + self._encode(tokenizer, user + self.before_reply)

    def _encode(self, tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
        """Encodes a text that is to go on: without the end token that some tokenizers add."""
        encoding = tokenizer(
            text, add_special_tokens=not self.has_template, return_special_tokens_mask=True
        )
        ids: list[int] = encoding["input_ids"]
        is_added: list[int] = encoding["special_tokens_mask"]
        while ids and is_added[len(ids) - 1] and ids[-1] == tokenizer.eos_token_id:
            del ids[-1]
        return ids
