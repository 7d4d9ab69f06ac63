"""When the heads run: not where plain decoding or copied tokens are faster without them."""

from collections import deque
from collections.abc import Sequence

from medusa_trt.runtime.decoding.growth import Growth

_NUM_RECENT = 9
"""Last times of the heads, whose median counts."""

_LONGEST_REST = 32
"""Most steps without heads, after steps in which they did not pay, before they are tried again."""

_GAIN_WEIGHT = 0.1
"""Weight of a new step in the running mean of the heads' gain."""


class HeadsUse:
    """Decides whether the heads run in a step, by their time and by what they gained so far.

    Times are in milliseconds without the machine's load, as those of `StepTimes`.
    """

    def __init__(self) -> None:
        self._times: dict[int, deque[float]] = {}
        self._gain = 1.0
        self._rest = self._rest_length = self._num_skipped = 0

    def ms_of(self, count: int) -> float:
        """Time of the heads for this many sequences; 0 before they ran."""
        times = self._times.get(count)
        return sorted(times)[len(times) // 2] if times else 0.0

    def add_time(self, count: int, ms: float) -> None:
        """Adds the time of one run."""
        self._times.setdefault(count, deque(maxlen=_NUM_RECENT)).append(ms)

    def pays(
        self, copied: Sequence[Sequence[int]], share: Sequence[float], plain_ms: float
    ) -> bool:
        """Whether to run the heads: not while they rest, nor beside copies likely to be right.

        Args:
            copied: copied tokens of each sequence.
            share: probability that a copied token is right, for each sequence.
            plain_ms: time of a step without drafts.
        """
        if self._num_skipped >= _LONGEST_REST:
            self._rest = self._num_skipped = 0
            return True
        self._num_skipped += 1
        if self._rest:
            self._rest -= 1
            return False
        doubt = sum(
            1.0 - part if tokens else 1.0 for tokens, part in zip(copied, share, strict=True)
        ) / len(copied)
        pays = doubt * self._gain * plain_ms > self.ms_of(len(copied))
        if pays:
            self._num_skipped = 0
        return pays

    def judge(self, growth: Growth, count: int) -> None:
        """Lets the heads rest if plain decoding would have been faster with the time they took."""
        gain = (growth.expected - count) / count
        self._gain += _GAIN_WEIGHT * (gain - self._gain)
        with_heads = growth.expected / (growth.step_ms + self.ms_of(count))
        if with_heads >= count / growth.plain_ms:
            self._rest_length = 0
            return
        self._rest_length = min(_LONGEST_REST, 2 * self._rest_length + 1)
        self._rest = self._rest_length
