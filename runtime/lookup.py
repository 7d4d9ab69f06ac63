"""Prompt lookup: drafts copied from what the sequence said before.

Text repeats itself: a name, a quoted sentence, a line of code. Where the last tokens occurred
before, what followed them then is a better and a longer draft than the heads', and costs nothing
(prompt lookup decoding, A. Saxena 2023; `prompt_lookup_num_tokens` of transformers).
"""

from collections.abc import Sequence


class TokenLookup:
    """The tokens of one sequence, and where each n-gram of them last went on."""

    def __init__(self, token_ids: Sequence[int], ngram: int) -> None:
        """Starts with a prompt.

        Args:
            token_ids: the prompt.
            ngram: number of last tokens that must have occurred before, at least 1.
        """
        self._ngram = ngram
        self._tokens: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}
        self.add(token_ids)

    def add(self, token_ids: Sequence[int]) -> None:
        """Appends tokens."""
        known = max(0, len(self._tokens) - self._ngram)
        self._tokens += token_ids
        recent = self._tokens[known:]
        ngrams = zip(*(recent[start:] for start in range(self._ngram)), strict=False)
        places = range(known + self._ngram, len(self._tokens))
        self._after.update(zip(ngrams, places, strict=False))

    def continuation(self, length: int) -> list[int] | None:
        """What followed the last n tokens where they last occurred before, or None.

        Args:
            length: tokens to return. Where the sequence ends sooner, it is taken to go on with the
                same period.
        """
        start = self._after.get(tuple(self._tokens[-self._ngram :]))
        if start is None:
            return None
        found = self._tokens[start : start + length]
        while len(found) < length:
            found += found[: length - len(found)]
        return found
