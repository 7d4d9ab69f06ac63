"""Processors that forbid tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medusa_trt.errors import ProcessorError, PromptError
from medusa_trt.runtime.processors.base import (
    RunningProcessor,
    check_token_ids,
    check_vocabulary,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BannedTokens:
    """Forbids tokens and sequences of tokens (`bad_words_ids` of transformers).

    Attributes:
        token_ids: tokens that may not occur in the reply.
        sequences: sequences of one or more tokens. Where the text of prompt and reply ends with all
            but the last token of a sequence, the last token is forbidden.
    """

    token_ids: Sequence[int] = ()
    sequences: Sequence[Sequence[int]] = ()

    def __post_init__(self) -> None:
        name = "the list of banned tokens"
        object.__setattr__(self, "token_ids", check_token_ids(name, self.token_ids))
        sequences = tuple(check_token_ids(name, sequence) for sequence in self.sequences)
        if not all(sequences):
            raise PromptError(f"{name} holds an empty sequence: leave it out")
        object.__setattr__(self, "sequences", sequences)

    def start(self, prompt_ids: Sequence[int]) -> RunningProcessor:
        """See `LogitsProcessor`."""
        return _RunningBan(self, prompt_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class ForcedTokens:
    """Makes the reply begin with the given tokens.

    Attributes:
        token_ids: the reply's first tokens.
    """

    token_ids: Sequence[int]

    def __post_init__(self) -> None:
        object.__setattr__(self, "token_ids", check_token_ids("the forced reply", self.token_ids))

    def start(self, prompt_ids: Sequence[int]) -> RunningProcessor:
        """See `LogitsProcessor`."""
        return _RunningForce(self.token_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class MinNewTokens:
    """Forbids the end tokens until the reply has a minimum length.

    Attributes:
        num_tokens: number of tokens before the reply may end.
        eos_token_ids: the tokens that end a reply.
    """

    num_tokens: int
    eos_token_ids: Sequence[int]

    def __post_init__(self) -> None:
        if self.num_tokens < 0:
            raise PromptError(f"min_new_tokens is {self.num_tokens}: it must be at least 0")
        object.__setattr__(
            self, "eos_token_ids", check_token_ids("the list of end tokens", self.eos_token_ids)
        )

    def start(self, prompt_ids: Sequence[int]) -> RunningProcessor:
        """See `LogitsProcessor`."""
        return _RunningMinimum(self.num_tokens, self.eos_token_ids)


class _RunningBan:
    def __init__(self, banned: BannedTokens, prompt_ids: Sequence[int]) -> None:
        singles = [sequence[0] for sequence in banned.sequences if len(sequence) == 1]
        self._ids = np.array([*banned.token_ids, *singles], np.int64)
        sequence_ids = (token for sequence in banned.sequences for token in sequence)
        self._largest_id = max((*banned.token_ids, *sequence_ids), default=-1)
        # Sequences are indexed by the last token of their prefix, so a step compares few of them.
        self._endings: dict[int, list[tuple[list[int], int]]] = {}
        for *prefix, last in banned.sequences:
            if prefix:
                self._endings.setdefault(prefix[-1], []).append((prefix, last))
        self._context = list(prompt_ids)

    def process(self, logits: NDArray[np.float32]) -> None:
        check_vocabulary(self._largest_id, logits)
        logits[self._ids] = -np.inf
        context = self._context
        for prefix, last in self._endings.get(context[-1], ()) if context else ():
            if context[-len(prefix) :] == prefix:
                logits[last] = -np.inf

    def accept(self, token: int) -> None:
        self._context.append(token)


class _RunningForce:
    def __init__(self, token_ids: Sequence[int]) -> None:
        self._token_ids = token_ids
        self._largest_id = max(token_ids, default=-1)
        self._position = 0

    def process(self, logits: NDArray[np.float32]) -> None:
        check_vocabulary(self._largest_id, logits)
        if self._position < len(self._token_ids):
            logits.fill(-np.inf)
            logits[self._token_ids[self._position]] = 0.0

    def accept(self, token: int) -> None:
        if self._position < len(self._token_ids):
            if token != self._token_ids[self._position]:
                raise ProcessorError(
                    f"token {self._token_ids[self._position]} is forced at position "
                    f"{self._position} of the reply, but another logits processor forbids it: "
                    "remove one of them"
                )
            self._position += 1


class _RunningMinimum:
    def __init__(self, num_tokens: int, eos_token_ids: Sequence[int]) -> None:
        self._num_missing = num_tokens
        self._ids = np.array(eos_token_ids, np.int64)
        self._largest_id = max(eos_token_ids, default=-1)

    def process(self, logits: NDArray[np.float32]) -> None:
        check_vocabulary(self._largest_id, logits)
        if self._num_missing > 0:
            logits[self._ids] = -np.inf

    def accept(self, token: int) -> None:
        self._num_missing -= 1
