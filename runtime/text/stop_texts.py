"""Stop texts, also those in which special tokens occur, which have no text in a reply."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

_FIRST_MARK = 0x10F000
"""Code point of the first mark, from an area of Unicode that has no characters."""


@dataclass(frozen=True, slots=True)
class StopTexts:
    """The texts that end a reply, and marks for the special tokens that occur in them.

    Attributes:
        texts: the stop texts, and once more with marks those that name special tokens.
        shown: the text or mark that a stream has for a special token, by its id.
        cleaned: what a reply shows for each mark, for `str.translate`.
    """

    texts: tuple[str, ...]
    shown: Mapping[int, str]
    cleaned: Mapping[int, str]


def find_stop_texts(
    stop: Sequence[str], special_tokens: Mapping[int, str], shown_ids: Iterable[int]
) -> StopTexts:
    """Finds the special tokens that occur in stop texts.

    Args:
        stop: the stop texts.
        special_tokens: the names of the special tokens by their ids.
        shown_ids: those whose names the text of the reply shows.
    """
    names = {token_id: special_tokens[token_id] for token_id in shown_ids}
    found = [
        (name, token_id)
        for token_id, name in special_tokens.items()
        if any(name in text for text in stop)
    ]
    marks = {token_id: chr(_FIRST_MARK + place) for place, (_, token_id) in enumerate(found)}
    marked = list(stop)
    for name, token_id in sorted(found, key=lambda each: -len(each[0])):
        marked = [text.replace(name, marks[token_id]) for text in marked]
    return StopTexts(
        texts=tuple(dict.fromkeys((*stop, *marked))),
        shown=names | marks,
        cleaned={ord(mark): names.get(token_id, "") for token_id, mark in marks.items()},
    )
