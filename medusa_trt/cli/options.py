"""Options of the command line, made from dataclasses.

A frozen dataclass with its docstring is the only declaration of its options. For each field:

- The name is the flag: `max_length` is `--max-length`.
- The type says what is accepted: a number, a text, a path, one of a `Literal`'s values, a switch
  for `bool`, values with commas between them for a tuple. A dataclass is a group of options.
- The default and the field's entry under `Attributes:` are the help. The entry itself explains a
  default of None or (), as in "(default: the bundle's)".

`Annotated` says what these cannot. A string spells the flag and the placeholder of its value, as
"--threads N"; "BUNDLE" is a positional argument, which may be left out if its default is None;
"--stop TEXT" of a tuple may be repeated, "--data FOLDER ..." takes several values, and
"--[no-]bf16" can be negated. A function makes the value from the text. A tuple names the options of
a group that are offered.
"""

import argparse
import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import partial
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from medusa_trt.errors import MedusaError

T = TypeVar("T")

_NUMBERS = {int: ("N", "a whole number", "whole numbers"), float: ("X", "a number", "numbers")}
"""Placeholder of a number, and words for one and for several, by their type."""


def add_options(parser: argparse.ArgumentParser, options: type) -> list[str]:
    """Adds the options of a dataclass to a parser; `read_options` reads what it parses.

    Returns:
        What the user must give, as the usage line shows it.
    """
    return _add_to_group(parser, parser, _read_fields(options), "")


def read_options(options: type[T], namespace: argparse.Namespace, prefix: str = "") -> T:
    """Makes a dataclass of what the user typed; all other fields have their defaults.

    Args:
        options: the dataclass.
        namespace: what the parser found.
        prefix: what the names of these options begin with in the namespace.

    Raises:
        MedusaError: the dataclass refuses a value; see `name_flags_in_errors`.
    """
    values = {}
    for option in _read_fields(options):
        name = prefix + option.name
        if option.is_group:
            values[option.name] = read_options(option.type, namespace, f"{name}.")
        elif hasattr(namespace, name):
            value = getattr(namespace, name)
            values[option.name] = tuple(value) if isinstance(value, list) else value
    return options(**values)


@contextmanager
def name_flags_in_errors(options: type) -> Iterator[None]:
    """Replaces the name of an option at the beginning of an error by its flag, inside the block.

    Dataclasses and sessions name fields and arguments of Python; the user has typed flags.

    Raises:
        MedusaError: the block raised it; the message begins with the flag instead of the name.
    """
    try:
        yield
    except MedusaError as error:
        name, *rest = re.split(r"(?= is | are | has )", str(error), maxsplit=1)
        flags = _read_flags(options)
        if name not in flags:
            raise
        raise type(error)("".join([flags[name], *rest])) from error


def _read_flags(options: type) -> dict[str, str]:
    """The flag of each option by the name of its field, with those of all groups."""
    flags: dict[str, str] = {}
    for option in _read_fields(options):
        flags |= _read_flags(option.type) if option.is_group else {option.name: option.flag}
    return flags


@dataclass(frozen=True, slots=True)
class _Option:
    """A field of a dataclass as the command line shows it.

    Attributes:
        name: the field's name.
        type: the field's type without None; for a list, the type of one value.
        is_list: whether the field is a tuple of values.
        default: the field's default; MISSING where the user must give a value.
        text: the field's entry in the docstring.
        notes: what the type is annotated with.
    """

    name: str
    type: Any
    is_list: bool
    default: object
    text: str
    notes: list[Any]

    def note(self, kind: Any) -> Any:
        """The annotation of this kind; None if there is none."""
        return next((note for note in self.notes if isinstance(note, kind)), None)

    @property
    def spelling(self) -> str:
        """How the flag and its placeholder are to be written, as far as the annotation says."""
        return self.note(str) or ""

    @property
    def flag(self) -> str:
        """What the user types, as "--threads"; the placeholder of a positional argument."""
        flag, *_ = [*self.spelling.split(), f"--{self.name.replace('_', '-')}"]
        return flag.replace("[no-]", "")

    @property
    def metavar(self) -> str:
        """The placeholder of the value in the help."""
        spelled = self.spelling.split()[1:2]
        if spelled and spelled != ["..."]:
            return spelled[0]
        if self.is_list and not self.takes_several:
            return "LIST"
        if get_origin(self.type) is Literal:
            return f"{{{','.join(get_args(self.type))}}}"
        name = self.flag.removeprefix("--").replace("-", "_").upper()
        return _NUMBERS[self.type][0] if self.type in _NUMBERS else name

    @property
    def takes_several(self) -> bool:
        """Whether several values follow the flag, or take the place of a positional argument."""
        return self.spelling.endswith(" ...")

    @property
    def may_be_repeated(self) -> bool:
        """Whether the flag may be given several times, each with one value."""
        return self.is_list and not self.takes_several and self.metavar != "LIST"

    @property
    def can_be_negated(self) -> bool:
        """Whether a switch also has a form with `--no-`."""
        return "[no-]" in self.spelling

    @property
    def is_group(self) -> bool:
        """Whether the field is a group of options; a dataclass that may be None is one value."""
        is_value = self.default is None or self.note(Callable) is not None
        return is_dataclass(self.type) and not is_value


def _read_fields(options: type) -> list[_Option]:
    texts, hints = _read_docstrings(options), get_type_hints(options, include_extras=True)
    described = []
    for field in fields(options):
        hint = hints[field.name]
        kind, *notes = get_args(hint) if get_origin(hint) is Annotated else [hint]
        if get_origin(kind) in (Union, UnionType):
            kind = next(member for member in get_args(kind) if member is not NoneType)
        is_list = get_origin(kind) is tuple
        kind, text = get_args(kind)[0] if is_list else kind, texts.get(field.name, "")
        described.append(_Option(field.name, kind, is_list, field.default, text, notes))
    return described


def _read_docstrings(options: type) -> dict[str, str]:
    """The entries under `Attributes:` in the docstrings of a dataclass and its bases."""
    entries = {}
    for base in reversed(options.__mro__):
        _, _, section = inspect.cleandoc(base.__doc__ or "").partition("\nAttributes:\n")
        for entry in re.split(r"\n(?= {4}\w)", section):
            name, _, text = entry.strip().partition(": ")
            entries[name] = " ".join(text.split()).removesuffix(".")
    return entries


def _add_to_group(
    parser: argparse.ArgumentParser,
    group: argparse._ActionsContainer,
    options: list[_Option],
    prefix: str,
) -> list[str]:
    required = []
    flags = {option.name: option.flag for option in options}
    for option in options:
        name = prefix + option.name
        if option.is_group:
            offered = option.note(tuple)
            inner = _read_fields(option.type)
            if offered is not None:
                inner = [inner_option for inner_option in inner if inner_option.name in offered]
            description = _make_help(option, flags)
            inner_group = parser.add_argument_group(option.name.replace("_", " "), description)
            required += _add_to_group(parser, inner_group, inner, f"{name}.")
            continue
        settings = _make_settings(option)
        settings["help"] = _make_help(option, flags).replace("%", "%%")
        if not option.flag.startswith("-"):
            shown = option.flag + " ..." * option.takes_several
            if option.default is None:
                settings |= {"nargs": "?", "default": argparse.SUPPRESS}
                shown = f"[{shown}]"
            group.add_argument(name, **settings | {"metavar": option.flag})
            required.append(shown)
            continue
        if option.default is MISSING:
            settings["required"] = True
            shown = option.metavar
            if shown.startswith("{"):  # The help lists the choices, a usage would be too long.
                shown = option.name.upper()
            required.append(f"{option.flag} {shown}" + " ..." * option.takes_several)
        # Only what the user typed is in the namespace, since the dataclass has the defaults.
        group.add_argument(option.flag, dest=name, default=argparse.SUPPRESS, **settings)
    return required


def _make_settings(option: _Option) -> dict[str, Any]:
    """What argparse is told about the type of an option."""
    if option.type is bool:
        return {"action": argparse.BooleanOptionalAction if option.can_be_negated else "store_true"}
    settings: dict[str, Any] = {"metavar": option.metavar}
    if option.takes_several:
        settings["nargs"] = "+"
    if option.may_be_repeated:
        settings["action"] = "append"
    return settings | {"type": option.note(Callable) or partial(_make_value, option)}


def _make_value(option: _Option, text: str) -> object:
    """The value of an option that a text stands for.

    Raises:
        MedusaError: there is none. argparse passes this error on, so that all errors look alike.
    """
    is_list = option.metavar == "LIST"
    parts = [part.strip() for part in text.split(",")] if is_list else [text]
    choices = get_args(option.type) if get_origin(option.type) is Literal else None
    try:
        values = [choices[choices.index(x)] if choices else option.type(x) for x in parts]
    except ValueError as error:
        if choices:
            allowed = f"choose from {', '.join(choices)}"
        else:
            allowed = f"give {_NUMBERS[option.type][2 if is_list else 1]}"
        commas = ", with commas between them" if is_list else ""
        raise MedusaError(f"{option.flag} is {text!r}: {allowed}{commas}") from error
    return tuple(values) if is_list else values[0]


def _make_help(option: _Option, flags: dict[str, str]) -> str:
    """The entry of the docstring, with flags instead of names of fields, and the default."""
    text = re.sub(r"`([^`]+)`", lambda match: flags.get(match[1], match[1]), option.text)
    default = _write_default(option)
    return f"{text} (default: {default})" if default else text


def _write_default(option: _Option) -> str:
    """The default as the user would type it; empty where there is none."""
    default = option.default
    if option.is_group or default is None or default is MISSING:
        return ""
    if isinstance(default, bool):
        negated = option.flag.replace("--", "--no-", 1)
        return (option.flag if default else negated) if option.can_be_negated else ""
    values = default if isinstance(default, tuple) else (default,)
    return ",".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)
