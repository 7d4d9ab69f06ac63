"""Values that are kept while the engine returns the same arrays."""

import numpy as np
from numpy.typing import NDArray

from medusa_trt.runtime.decoding.cached_views import CachedViews, view_integers, view_states


def test_a_value_is_made_once_for_each_array_and_the_oldest_go() -> None:
    made: list[int] = []

    def make(array: NDArray[np.int64]) -> int:
        made.append(int(array[0]))
        return made[-1]

    views = CachedViews(make)
    arrays = [np.array([number]) for number in range(100)]
    assert [views.get(array) for array in arrays] == list(range(100))
    assert views.get(arrays[99]) == 99 and len(made) == 100
    assert views.get(arrays[0]) == 0 and made[-1] == 0 and len(made) == 101


def test_views_show_later_writes() -> None:
    integers = np.zeros((2, 2, 3), np.int64)
    states = np.zeros((2, 3, 4), np.float32)
    first, second = view_integers(integers)
    rows = view_states(states)
    integers[1], states[1, 2] = 5, 7
    assert first.tolist() == [0] * 6 and second.tolist() == [5] * 6
    assert rows[1][2].tolist() == [[7] * 4] and rows[0][2].shape == (1, 4)
