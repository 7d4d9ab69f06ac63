"""Processors that make tokens more or less likely."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from medusa_trt.runtime.processors.base import (
    RunningProcessor,
    check_number,
    check_token_ids,
    check_vocabulary,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RepetitionPenalty:
    """Makes the tokens of the prompt and of the reply less likely (CTRL, arXiv:1909.05858).

    Attributes:
        penalty: divides positive logits and multiplies negative ones; from 0.01 to 100. A value
            below 1 encourages repetition.
    """

    penalty: float

    def __post_init__(self) -> None:
        check_number("repetition penalty", self.penalty, 0.01, 100.0)

    def start(self, prompt_ids: Sequence[int]) -> RunningProcessor:
        """See `LogitsProcessor`."""
        return _RunningRepetition(self.penalty, prompt_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class PresencePenalty:
    """Lowers the logit of every token that occurs in the reply (OpenAI's API).

    Attributes:
        penalty: subtracted once from the logit; from -2 to 2.
    """

    penalty: float

    def __post_init__(self) -> None:
        check_number("presence penalty", self.penalty, -2.0, 2.0)

    def start(self, prompt_ids: Sequence[int]) -> RunningProcessor:
        """See `LogitsProcessor`."""
        return _RunningCountPenalty(presence=self.penalty, frequency=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class FrequencyPenalty:
    """Lowers the logit of a token for each of its occurrences in the reply (OpenAI's API).

    Attributes:
        penalty: subtracted from the logit for each occurrence; from -2 to 2.
    """

    penalty: float

    def __post_init__(self) -> None:
        check_number("frequency penalty", self.penalty, -2.0, 2.0)

    def start(self, prompt_ids: Sequence[int]) -> RunningProcessor:
        """See `LogitsProcessor`."""
        return _RunningCountPenalty(presence=0.0, frequency=self.penalty)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitBias:
    """Adds a constant to the logits of chosen tokens (OpenAI's API).

    Attributes:
        biases: value to add for each token id, from -100 to 100. To forbid a token, use
            `BannedTokens`.
    """

    biases: Mapping[int, float]

    def __post_init__(self) -> None:
        token_ids = check_token_ids("the logit bias", self.biases)
        for token, bias in zip(token_ids, self.biases.values(), strict=True):
            check_number(f"logit bias of token {token}", bias, -100.0, 100.0)
        copied = MappingProxyType(dict(zip(token_ids, self.biases.values(), strict=True)))
        object.__setattr__(self, "biases", copied)

    def start(self, prompt_ids: Sequence[int]) -> RunningProcessor:
        """See `LogitsProcessor`."""
        return _RunningBias(self.biases)


class _TokenTally:
    """Counts tokens, in arrays that double in size when they are full."""

    def __init__(self, token_ids: Iterable[int] = ()) -> None:
        self._slots: dict[int, int] = {}
        self._ids = np.zeros(64, np.int64)
        self._counts = np.zeros(64, np.float32)
        for token in token_ids:
            self.add(token)

    @property
    def ids(self) -> NDArray[np.int64]:
        """Distinct tokens, (num_distinct,) int64."""
        return self._ids[: len(self._slots)]

    @property
    def counts(self) -> NDArray[np.float32]:
        """Count of each token in `ids`, (num_distinct,) float32."""
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
        values = logits[ids]
        logits[ids] = np.where(values < 0, values * self._penalty, values / self._penalty)

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
