"""The length of numbers in JSON.

The JSON standard sets no limit, and a model that is unsure can fill the reply with digits.
"""

MAX_DIGITS = 20
"""Longest row of digits before or after the point of a number; 2^64 has 20 digits."""

_MAX_EXPONENT_DIGITS = 2
"""With 20 digits before the point and this exponent a number is still a finite float64."""


class DigitCount:
    """Counts the digits of the number that a growing JSON text ends with."""

    def __init__(self) -> None:
        self._num_digits, self._limit = 0, MAX_DIGITS
        self._is_text = self._is_escaped = False

    @property
    def is_full(self) -> bool:
        """Whether the number has as many digits as it should have."""
        return self._num_digits >= self._limit

    def add(self, text: bytes) -> None:
        """Reads on."""
        for byte in text:
            if self._is_text:
                self._is_text = self._is_escaped or byte != ord('"')
                self._is_escaped = not self._is_escaped and byte == ord("\\")
            elif 0x30 <= byte <= 0x39:
                self._num_digits += 1
            elif byte not in b"+-":
                self._num_digits = 0
                self._limit = _MAX_EXPONENT_DIGITS if byte in b"eE" else MAX_DIGITS
                self._is_text = byte == ord('"')
