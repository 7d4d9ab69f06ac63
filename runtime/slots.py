"""The slots of the KV cache: which text each one holds, and for whom."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

from medusa_trt.runtime.engines.base import Engine

_LEAST_COPIED = 16
"""A common beginning of fewer tokens is read again, because copying rows takes time as well."""


@dataclass(slots=True)
class Slot:
    """The text in a slot's cache rows.

    Attributes:
        token_ids: the tokens whose rows are valid.
        last_used: when its sequence ended, as a growing number; 0 if it was never used.
    """

    token_ids: list[int] = field(default_factory=list)
    last_used: int = 0


class Slots:
    """Assigns slots to sequences, and finds the beginning of a prompt in what slots hold already.

    A step runs over neighbouring slots, so running sequences are in slots 0 to `num_running` - 1.
    The sequence whose prompt is being read is behind them. All others hold the texts of ended
    sequences, until their rows are needed: the least recently used first.

    Attributes:
        num_running: number of running sequences.
        reading: slot of the sequence whose prompt is being read; None if there is none.
    """

    def __init__(self, engine: Engine) -> None:
        self._cache = engine.cache
        self._slots = [Slot() for _ in range(engine.batch_size)]
        self._clock = count(1)
        self.num_running = 0
        self.reading: int | None = None

    @property
    def has_free(self) -> bool:
        """Whether another sequence can be taken in."""
        return self.reading is None and self.num_running < len(self._slots)

    def token_ids(self, slot: int) -> list[int]:
        """The tokens that a slot holds; the caller appends those that it adds to the cache."""
        return self._slots[slot].token_ids

    def begin(self, prompt_ids: Sequence[int]) -> int:
        """Takes the slot behind the running sequences for a new prompt.

        Its tokens are then the beginning of the prompt that was found in a slot, whose rows were
        copied if need be.

        Returns:
            The slot.
        """
        target = self.num_running
        lengths = [_common_length(slot.token_ids, prompt_ids) for slot in self._slots]
        # Of equally long beginnings the one in place is best, then one that need not be kept.
        source = max(range(len(lengths)), key=lambda s: (lengths[s], s == target, s > target, -s))
        length = lengths[source]
        if source > target and length >= _LEAST_COPIED:
            self._exchange(source, target)
        elif source != target or length < _LEAST_COPIED:
            self._save(target)
            if source != target:
                length = 0 if length < _LEAST_COPIED else length
                if length:
                    self._cache.move(source, target, length)
        self._slots[target] = Slot(list(prompt_ids[:length]))
        self.reading = target
        return target

    def join(self) -> int:
        """Makes the sequence whose prompt was read a running one; returns its slot."""
        assert self.reading is not None
        source, target = self.reading, self.num_running
        self._exchange(source, target)
        self.reading = None
        self.num_running += 1
        return target

    def end_reading(self) -> None:
        """Ends the sequence whose prompt is being read; its rows stay for a later prompt."""
        assert self.reading is not None
        self._slots[self.reading].last_used = next(self._clock)
        self.reading = None

    def end_running(self, slot: int) -> None:
        """Ends a running sequence; the last one takes its slot, and its rows stay for a prompt."""
        self._slots[slot].last_used = next(self._clock)
        self.num_running -= 1
        self._exchange(slot, self.num_running)

    def forget_ended(self) -> None:
        """Forgets the texts of all ended sequences."""
        for slot in range(self.num_running, len(self._slots)):
            if slot != self.reading:
                self.forget(slot)

    def forget(self, slot: int) -> None:
        """Forgets what a slot holds, after a step that failed."""
        self._slots[slot].token_ids.clear()

    def _save(self, slot: int) -> None:
        """Moves the text of a slot that is to be written into that of the oldest ended one."""
        ended = range(self.num_running, len(self._slots))
        oldest = min(ended, key=self._age)
        if self._age(oldest) < self._age(slot):
            self._cache.move(slot, oldest, len(self._slots[slot].token_ids))
            self._slots[oldest] = self._slots[slot]

    def _age(self, slot: int) -> int:
        return self._slots[slot].last_used if self._slots[slot].token_ids else -1

    def _exchange(self, first: int, second: int) -> None:
        """Exchanges the texts of two slots."""
        if first == second:
            return
        lengths = [len(self._slots[slot].token_ids) for slot in (first, second)]
        if all(lengths):
            self._cache.exchange(first, second, max(lengths))
        elif lengths[0]:
            self._cache.move(first, second, lengths[0])
        elif lengths[1]:
            self._cache.move(second, first, lengths[1])
        self._slots[first], self._slots[second] = self._slots[second], self._slots[first]


def _common_length(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    for index, (left_id, right_id) in enumerate(zip(left, right, strict=False)):
        if left_id != right_id:
            return index
    return min(len(left), len(right))
