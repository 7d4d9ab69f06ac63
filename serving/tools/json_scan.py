"""Reads a JSON object that arrives in parts."""

import json


class ObjectScan:
    """Finds the members of a growing JSON object, and its end.

    It looks only at brackets, texts, commas and colons; whoever needs a valid value decodes it.

    Attributes:
        text: what was read of the object.
        members: the JSON of the values by their keys; the last one may be unfinished.
        is_done: whether the object has ended.
    """

    def __init__(self) -> None:
        self.text = ""
        self.members: dict[str, str] = {}
        self.is_done = False
        self._depth = 0
        self._is_in_text = self._is_escaped = False
        self._key: str | None = None
        self._start = 0

    @property
    def open_key(self) -> str | None:
        """The key whose value is being read."""
        return self._key

    def push(self, text: str) -> str:
        """Reads more; returns what stands behind the object's end.

        Args:
            text: not empty.

        Raises:
            ValueError: this is no object.
        """
        if not self.text and not text.startswith("{"):
            raise ValueError(f"{text[:1]!r} begins no JSON object")
        begin = len(self.text)
        self.text += text
        for place in range(begin, len(self.text)):
            self._read(place)
            if self.is_done:
                rest, self.text = self.text[place + 1 :], self.text[: place + 1]
                return rest
        if self._key is not None:
            self.members[self._key] = self.text[self._start :].strip()
        return ""

    def _read(self, place: int) -> None:
        letter = self.text[place]
        if self._is_in_text:
            self._is_in_text = self._is_escaped or letter != '"'
            self._is_escaped = not self._is_escaped and letter == "\\"
        elif letter == '"':
            self._is_in_text = True
        elif letter in "{[":
            self._depth += 1
            if self._depth == 1:
                self._start = place + 1
        elif letter in "}]":
            self._depth -= 1
            if self._depth == 0:
                self._end_value(place)
                self.is_done = True
        elif self._depth == 1 and letter == ":":
            self._key = str(json.loads(self.text[self._start : place]))
            self._start = place + 1
        elif self._depth == 1 and letter == ",":
            self._end_value(place)

    def _end_value(self, place: int) -> None:
        if self._key is not None:
            self.members[self._key] = self.text[self._start : place].strip()
        self._key, self._start = None, place + 1
