"""Processors that make tokens more or less likely."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from medusa_trt.errors import PromptError, check_range
from medusa_trt.runtime.processors.base import (
    RunningProcessor,
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
        check_range(self, PromptError, "penalty", 0.01, 100)

    def start(self, prompt_ids: Sequence[int]) -> RunningProcessor:
        """See `LogitsProcessor`."""
        return _RunningRepetition(self.penalty, prompt_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class CountPenalty:
    """Lowers the logits of the tokens that occur in the reply (OpenAI's API).

    Attributes:
        presence: subtracted once from the logit of each of these tokens; from -2 to 2.
        frequency: subtracted for each time that the token occurs; from -2 to 2.
    """

    presence: float = 0.0
    frequency: float = 0.0

    def __post_init__(self) -> None:
        check_range(self, PromptError, "presence frequency", -2, 2)

    def start(self, prompt_ids: Sequence[int]) -> RunningProcessor:
        """See `LogitsProcessor`."""
        return _RunningCounts(self)


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
            if not -100 <= bias <= 100:
                raise PromptError(
                    f"the logit bias of token {token} is {bias}: it must be between -100 and 100"
                )
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


class _RunningCounts:
    def __init__(self, penalty: CountPenalty) -> None:
        self._penalty = penalty
        self._tally = _TokenTally()

    def process(self, logits: NDArray[np.float32]) -> None:
        logits[self._tally.ids] -= self._penalty.presence
        logits[self._tally.ids] -= self._penalty.frequency * self._tally.counts

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
