"""Checks of the types of options: one mechanism for Python, the command line and servers."""

import operator
from collections.abc import Sequence
from dataclasses import fields
from functools import cache
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from medusa_trt.errors import MedusaError

_WORDS = {
    bool: "true or false",
    Path: "a path",
    str: "text",
    int: "a whole number",
    float: "a number",
    NoneType: "None",
}


def check_types(options: Any, error: type[MedusaError]) -> None:
    """Checks every attribute of a dataclass of options against its annotation.

    A list where a tuple is wanted becomes one; see `read_value`.

    Args:
        options: the dataclass, frozen or not.
        error: what is raised.

    Raises:
        MedusaError: a value of another type, or not among the choices.
    """
    hints = _hints_of(cast(Any, type(options)))
    for field in fields(options):
        value = getattr(options, field.name)
        read = read_value(field.name, value, hints[field.name], error)
        if read is not value:
            object.__setattr__(options, field.name, read)


def read_value(name: str, value: Any, hint: Any, error: type[MedusaError]) -> Any:
    """Checks one option against its annotation, and makes Python's own types of numpy's numbers.

    A list where a tuple is wanted becomes one.

    Args:
        name: the option's name, for the message.
        value: what the user gave.
        hint: its annotation.
        error: what is raised.

    Raises:
        MedusaError: the value has another type, or is not among the choices.
    """
    parts = _parts(hint)
    if isinstance(value, list) and any(get_origin(part) is tuple for part in parts):
        value = tuple(value)
    if not any(_fits(value, part) for part in parts):
        type_names = " or ".join(_describe(part) for part in parts)
        raise error(f"{name} is {value!r}: it must be {type_names}")
    return _make_plain(value)


def find_invalid_character(text: str) -> str | None:
    """Finds the first character that is no Unicode; Python makes such of bytes it cannot decode."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return text[error.start]
    return None


def _make_plain(value: Any) -> Any:
    """Makes Python's own numbers of numpy's, which overflow where those grow."""
    if isinstance(value, tuple):
        plain = tuple(_make_plain(item) for item in value)
        return value if all(map(operator.is_, plain, value)) else plain
    if isinstance(value, int | float) or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


@cache
def _hints_of(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _parts(hint: Any) -> Sequence[Any]:
    """The types that a union allows."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _fits(value: object, hint: Any) -> bool:
    origin = get_origin(hint)
    if origin is Literal:
        return isinstance(value, str) and value in get_args(hint)
    if origin is tuple:
        kind = get_args(hint)[0]
        return isinstance(value, tuple) and all(_fits(item, kind) for item in value)
    if hint is float:
        return isinstance(value, Real) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, Integral) and not isinstance(value, bool)
    if origin is Sequence:
        kind = get_args(hint)[0]
        is_sequence = isinstance(value, Sequence) and not isinstance(value, str | bytes)
        return is_sequence and all(_fits(item, kind) for item in cast(Sequence[Any], value))
    if getattr(hint, "_is_protocol", False):
        names = [name for name in vars(hint) if not name.startswith("_")]
        return all(hasattr(value, name) for name in names)
    return isinstance(value, origin or hint)


def _describe(hint: Any) -> str:
    origin = get_origin(hint)
    if origin is Literal:
        return f"one of {', '.join(get_args(hint))}"
    if origin in (tuple, Sequence):
        return f"a sequence of which each is {_describe(get_args(hint)[0])}"
    name = (origin or hint).__name__
    return _WORDS.get(hint, f"a{'n' * (name[0] in 'AEIOU')} {name}")
