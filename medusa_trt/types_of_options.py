"""Checks of the types of options: one mechanism for Python, the command line and servers."""

from collections.abc import Sequence
from dataclasses import fields
from functools import cache
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from medusa_trt.errors import MedusaError

_WORDS = {
    bool: "true or false",
    str: "text",
    int: "a whole number",
    float: "a number",
    NoneType: "None",
}


def check_types(options: Any, error: type[MedusaError]) -> None:
    """Checks every attribute of a dataclass of options against its annotation.

    A list where a tuple is wanted becomes one.

    Args:
        options: the dataclass, frozen or not.
        error: what is raised.

    Raises:
        MedusaError: a value of another type, or not among the choices.
    """
    hints = _hints_of(cast(Any, type(options)))
    for field in fields(options):
        value, hint = getattr(options, field.name), hints[field.name]
        if isinstance(value, list) and any(get_origin(part) is tuple for part in _parts(hint)):
            value = tuple(value)
            object.__setattr__(options, field.name, value)
        if not any(_fits(value, part) for part in _parts(hint)):
            type_names = " or ".join(_describe(part) for part in _parts(hint))
            raise error(f"{field.name} is {value!r}: it must be {type_names}")


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
    if getattr(hint, "_is_protocol", False):
        methods = [name for name in vars(hint) if not name.startswith("_")]
        return all(callable(getattr(value, name, None)) for name in methods)
    return isinstance(value, origin or hint)


def _describe(hint: Any) -> str:
    origin = get_origin(hint)
    if origin is Literal:
        return f"one of {', '.join(get_args(hint))}"
    if origin is tuple:
        return f"a sequence of which each is {_describe(get_args(hint)[0])}"
    return _WORDS.get(hint, f"a {(origin or hint).__name__}")
