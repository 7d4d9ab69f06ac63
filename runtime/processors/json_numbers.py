"""Limits the digits of numbers in JSON.

The JSON standard sets no limit, and some models repeat digits until the reply is full.
"""

MAX_DIGITS = 20
"""Largest number of digits before or after the point of a number; 2^64 has 20 digits."""

_MAX_EXPONENT_DIGITS = 2
"""Largest number of digits of an exponent. A number of 20 digits with an exponent of 99 is a finite
float64."""


class DigitCount:
    """Counts the digits of the number that a growing JSON text ends with."""

    def __init__(self) -> None:
        self._num_digits, self._limit = 0, MAX_DIGITS
        self._is_in_string = self._is_escaped = False

    @property
    def is_full(self) -> bool:
        """Whether the number has as many digits as it may have."""
        return self._num_digits >= self._limit

    def add(self, text: bytes) -> None:
        """Reads the next bytes of the JSON text."""
        for byte in text:
            if self._is_in_string:
                self._is_in_string = self._is_escaped or byte != ord('"')
                self._is_escaped = not self._is_escaped and byte == ord("\\")
            elif 0x30 <= byte <= 0x39:
                self._num_digits += 1
            elif byte not in b"+-":
                self._num_digits = 0
                self._limit = _MAX_EXPONENT_DIGITS if byte in b"eE" else MAX_DIGITS
                self._is_in_string = byte == ord('"')
