"""Values made from output arrays of the engine, kept while the arrays stay the same."""

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

_Value = TypeVar("_Value")

_MAX_KEPT = 64


class CachedViews(Generic[_Value]):
    """Keeps the value made from each output array of the engine.

    Engines return the same arrays step after step. A step empties the processor's caches, and numpy
    then takes 10 to 20 us to make a view (docs/decisions/decoding.md).
    """

    def __init__(self, make: Callable[[NDArray[Any]], _Value]) -> None:
        self._make = make
        self._kept: dict[int, tuple[NDArray[Any], _Value]] = {}

    def get(self, array: NDArray[Any]) -> _Value:
        """Returns the value of this array, and makes it if the array is another one."""
        entry = self._kept.get(id(array))
        if entry is None:
            while len(self._kept) >= _MAX_KEPT:
                self._kept.pop(next(iter(self._kept)))
            # The array is kept too, so that no other one gets its id.
            entry = self._kept[id(array)] = array, self._make(array)
        return entry[1]


def view_integers(array: NDArray[np.int64]) -> list[memoryview]:
    """Flat view of the integers of each sequence."""
    return [part.data.cast("B").cast("q") for part in array]


def view_states(array: NDArray[np.float32]) -> list[list[NDArray[np.float32]]]:
    """Views of the rows of each sequence, (1, hidden_size) each."""
    return [[row[None] for row in part] for part in array]
