"""Logits processors: what may change a position's logits before its token is chosen.

A processor is a description that serves any number of replies; `start` makes the state of one
reply. For every position of the reply in order, the decode loop lets each processor change the
logits, chooses a token and reports it to all of them. It walks the accepted path only, so states
never roll back. Nothing here takes time or memory in proportion to the vocabulary, except that
`ForcedTokens` writes the whole row.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from medusa_trt.errors import PromptError


class RunningProcessor(Protocol):
    """The state of one reply."""

    def process(self, logits: NDArray[np.float32]) -> None:
        """Changes the next position's logits in place; -inf forbids a token.

        Args:
            logits: (vocab,) float32.

        Raises:
            PromptError: the processor names a token beyond the vocabulary, or cannot go on.
        """
        ...

    def accept(self, token: int) -> None:
        """Takes note of the token that was chosen at the position last processed.

        Raises:
            PromptError: the token is one that this processor forbids.
        """
        ...


class LogitsProcessor(Protocol):
    """An immutable description, shared by any number of replies."""

    def start(self, prompt_ids: Sequence[int]) -> RunningProcessor:
        """The state before the first token of a reply to this prompt."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RepetitionPenalty:
    """Makes the tokens of the prompt and of the reply less likely (CTRL, arXiv:1909.05858).

    Attributes:
        penalty: positive logits are divided by it, negative ones multiplied; from 0.01 to 100,
            below 1 it encourages repetition.
    """

    penalty: float

    def __post_init__(self) -> None:
        _check_range("repetition penalty", self.penalty, 0.01, 100.0)

    def start(self, prompt_ids: Sequence[int]) -> RunningProcessor:
        """See `LogitsProcessor`."""
        return _RunningRepetition(self.penalty, prompt_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class PresencePenalty:
    """Lowers the logit of every token that the reply holds, once (OpenAI's API).

    Attributes:
        penalty: what is subtracted; from -2 to 2.
    """

    penalty: float

    def __post_init__(self) -> None:
        _check_range("presence penalty", self.penalty, -2.0, 2.0)

    def start(self, prompt_ids: Sequence[int]) -> RunningProcessor:
        """See `LogitsProcessor`."""
        return _RunningCountPenalty(presence=self.penalty, frequency=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class FrequencyPenalty:
    """Lowers the logit of every token by how often the reply holds it (OpenAI's API).

    Attributes:
        penalty: what is subtracted for each occurrence; from -2 to 2.
    """

    penalty: float

    def __post_init__(self) -> None:
        _check_range("frequency penalty", self.penalty, -2.0, 2.0)

    def start(self, prompt_ids: Sequence[int]) -> RunningProcessor:
        """See `LogitsProcessor`."""
        return _RunningCountPenalty(presence=0.0, frequency=self.penalty)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitBias:
    """Adds a constant to the logits of chosen tokens (OpenAI's API).

    Attributes:
        biases: token id to what is added, from -100 to 100. `BannedTokens` forbids for certain.
    """

    biases: Mapping[int, float]

    def __post_init__(self) -> None:
        token_ids = _token_ids("the logit bias", self.biases)
        for token, bias in zip(token_ids, self.biases.values(), strict=True):
            _check_range(f"logit bias of token {token}", bias, -100.0, 100.0)
        copied = MappingProxyType(dict(zip(token_ids, self.biases.values(), strict=True)))
        object.__setattr__(self, "biases", copied)

    def start(self, prompt_ids: Sequence[int]) -> RunningProcessor:
        """See `LogitsProcessor`."""
        return _RunningBias(self.biases)


@dataclass(frozen=True, slots=True, kw_only=True)
class BannedTokens:
    """Forbids tokens, and sequences of tokens (`bad_words_ids` of transformers).

    Attributes:
        token_ids: tokens that the reply never holds.
        sequences: words of one or more tokens that the reply never completes, nor prompt and
            reply together: where all but a word's last token stand, the last is forbidden.
    """

    token_ids: Sequence[int] = ()
    sequences: Sequence[Sequence[int]] = ()

    def __post_init__(self) -> None:
        name = "the list of banned tokens"
        object.__setattr__(self, "token_ids", _token_ids(name, self.token_ids))
        sequences = tuple(_token_ids(name, sequence) for sequence in self.sequences)
        if not all(sequences):
            raise PromptError(f"{name} holds an empty sequence: give it a token or leave it out")
        object.__setattr__(self, "sequences", sequences)

    def start(self, prompt_ids: Sequence[int]) -> RunningProcessor:
        """See `LogitsProcessor`."""
        return _RunningBan(self, prompt_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class ForcedTokens:
    """Makes the reply begin with given tokens.

    Attributes:
        token_ids: the reply's first tokens.
    """

    token_ids: Sequence[int]

    def __post_init__(self) -> None:
        object.__setattr__(self, "token_ids", _token_ids("the forced reply", self.token_ids))

    def start(self, prompt_ids: Sequence[int]) -> RunningProcessor:
        """See `LogitsProcessor`."""
        return _RunningForce(self.token_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class MinNewTokens:
    """Forbids the tokens that end a reply until it has a length.

    Attributes:
        num_tokens: tokens before the reply may end.
        eos_token_ids: the tokens that end it.
    """

    num_tokens: int
    eos_token_ids: Sequence[int]

    def __post_init__(self) -> None:
        if self.num_tokens < 0:
            raise PromptError(f"min_new_tokens is {self.num_tokens}: it must be at least 0")
        object.__setattr__(
            self, "eos_token_ids", _token_ids("the list of end tokens", self.eos_token_ids)
        )

    def start(self, prompt_ids: Sequence[int]) -> RunningProcessor:
        """See `LogitsProcessor`."""
        return _RunningMinimum(self.num_tokens, self.eos_token_ids)


def check_vocabulary(largest_id: int, logits: NDArray[np.float32]) -> None:
    """Checks that a token id has a logit.

    Args:
        largest_id: the largest id that a processor names; -1 if it names none.
        logits: (vocab,) float32.

    Raises:
        PromptError: the id is beyond the vocabulary.
    """
    if largest_id >= len(logits):
        raise PromptError(
            f"a logits processor names token {largest_id}, the model's tokens end at "
            f"{len(logits) - 1}: use token ids of this model"
        )


class _TokenTally:
    """Distinct tokens and their counts, in arrays that grow by doubling."""

    def __init__(self, token_ids: Iterable[int] = ()) -> None:
        self._slots: dict[int, int] = {}
        self._ids = np.zeros(64, np.int64)
        self._counts = np.zeros(64, np.float32)
        for token in token_ids:
            self.add(token)

    @property
    def ids(self) -> NDArray[np.int64]:
        """(num_distinct,) int64."""
        return self._ids[: len(self._slots)]

    @property
    def counts(self) -> NDArray[np.float32]:
        """(num_distinct,) float32, in the order of `ids`."""
        return self._counts[: len(self._slots)]

    def add(self, token: int) -> None:
        """Counts one more occurrence."""
        slot = self._slots.setdefault(token, len(self._slots))
        if slot == len(self._ids):
            self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
        self._ids[slot] = token
        self._counts[slot] += 1


class _RunningRepetition:
    def __init__(self, penalty: float, prompt_ids: Sequence[int]) -> None:
        self._penalty = penalty
        self._tally = _TokenTally(prompt_ids)

    def process(self, logits: NDArray[np.float32]) -> None:
        ids = self._tally.ids
        found = logits[ids]
        logits[ids] = np.where(found < 0, found * self._penalty, found / self._penalty)

    def accept(self, token: int) -> None:
        self._tally.add(token)


class _RunningCountPenalty:
    def __init__(self, *, presence: float, frequency: float) -> None:
        self._presence = presence
        self._frequency = frequency
        self._tally = _TokenTally()

    def process(self, logits: NDArray[np.float32]) -> None:
        logits[self._tally.ids] -= self._presence + self._frequency * self._tally.counts

    def accept(self, token: int) -> None:
        self._tally.add(token)


class _RunningBias:
    def __init__(self, biases: Mapping[int, float]) -> None:
        self._ids = np.array(list(biases), np.int64)
        self._values = np.array(list(biases.values()), np.float32)
        self._largest_id = max(biases, default=-1)

    def process(self, logits: NDArray[np.float32]) -> None:
        check_vocabulary(self._largest_id, logits)
        logits[self._ids] += self._values

    def accept(self, token: int) -> None:
        pass


class _RunningBan:
    def __init__(self, banned: BannedTokens, prompt_ids: Sequence[int]) -> None:
        singles = [sequence[0] for sequence in banned.sequences if len(sequence) == 1]
        self._ids = np.array([*banned.token_ids, *singles], np.int64)
        named = (token for sequence in banned.sequences for token in sequence)
        self._largest_id = max((*banned.token_ids, *named), default=-1)
        # By the last token of the prefix, so that a step looks at few of many words.
        self._words: dict[int, list[tuple[list[int], int]]] = {}
        for *prefix, last in banned.sequences:
            if prefix:
                self._words.setdefault(prefix[-1], []).append((prefix, last))
        self._context = list(prompt_ids)

    def process(self, logits: NDArray[np.float32]) -> None:
        check_vocabulary(self._largest_id, logits)
        logits[self._ids] = -np.inf
        context = self._context
        for prefix, last in self._words.get(context[-1], ()) if context else ():
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
                raise PromptError(
                    f"token {self._token_ids[self._position]} is forced at position "
                    f"{self._position} of the reply, but another logits processor forbids it: "
                    "remove one of them"
                )
            self._position += 1


class _RunningMinimum:
    def __init__(self, num_tokens: int, eos_token_ids: Sequence[int]) -> None:
        self._missing = num_tokens
        self._ids = np.array(eos_token_ids, np.int64)
        self._largest_id = max(eos_token_ids, default=-1)

    def process(self, logits: NDArray[np.float32]) -> None:
        check_vocabulary(self._largest_id, logits)
        if self._missing > 0:
            logits[self._ids] = -np.inf

    def accept(self, token: int) -> None:
        self._missing -= 1


def _check_range(name: str, value: float, low: float, high: float) -> None:
    # A comparison with NaN is false.
    if not low <= value <= high:
        raise PromptError(f"the {name} is {value}: it must be from {low:g} to {high:g}")


def _token_ids(name: str, token_ids: Iterable[int]) -> tuple[int, ...]:
    found = tuple(token_ids)
    for token in found:
        if not isinstance(token, (int, np.integer)) or token < 0:
            raise PromptError(f"{name} holds {token!r}: token ids are whole numbers from 0")
    return tuple(int(token) for token in found)
