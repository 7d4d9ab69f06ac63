"""A verb of the command line, and the parser of its arguments, whose errors are one line."""

import argparse
import inspect
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import takewhile
from typing import Generic, NoReturn, TypeVar

from medusa_trt.cli.options import add_options, name_flags_in_errors, read_options
from medusa_trt.errors import MedusaError

Arguments = TypeVar("Arguments")


@dataclass(frozen=True, slots=True)
class Verb(Generic[Arguments]):
    """A command such as `medusa-trt export`.

    Attributes:
        arguments: the dataclass of what the user may give; its docstring is the help.
        run: does the work; returns the exit code, None for 0. Raises MedusaError for what the user
            can cause.
        epilog: makes the text at the end of the help.
    """

    arguments: type[Arguments]
    run: Callable[[Arguments], int | None]
    epilog: Callable[[], str] | None = None

    def make_parser(self, command: str) -> "Parser":
        """Makes the parser of this verb, which the user calls by `command`."""
        description, *_ = inspect.cleandoc(self.arguments.__doc__ or "").split("\n\nAttributes:")
        parser = Parser(
            command,
            " ".join(description.split()),
            "" if self.epilog is None else self.epilog(),
        )
        required = add_options(parser, self.arguments)
        if not any(action.dest == "verbose" for action in parser._actions):
            help_ = "show the traceback of an error"
            parser.add_argument("--verbose", action="store_true", help=help_)
        parser.usage = " ".join([command, *required, "[options]"])
        return parser

    def parse(self, command: str, words: Sequence[str]) -> Arguments:
        """Reads the arguments.

        Raises:
            MedusaError: the words are not valid arguments.
        """
        parser = self.make_parser(command)
        parser.check_flags(words)
        # argparse finds no words behind "--" when they may stand between options.
        is_ended = "--" in words
        parse = parser.parse_known_args if is_ended else parser.parse_known_intermixed_args
        namespace, unknown = parse(words)
        if unknown:
            parser.error(f"unexpected argument {unknown[0]!r}")
        with name_flags_in_errors(self.arguments):
            return read_options(self.arguments, namespace)

    def call(self, command: str, words: Sequence[str]) -> int:
        """Reads the arguments, does what they say, and returns the exit code.

        Raises:
            MedusaError: the words are not valid arguments, or the verb raised it.
        """
        arguments = self.parse(command, words)
        with name_flags_in_errors(self.arguments):
            return self.run(arguments) or 0


class Parser(argparse.ArgumentParser):
    """A parser that raises its errors."""

    def __init__(self, command: str, description: str, epilog: str = "") -> None:
        super().__init__(
            command, description=description, epilog=epilog, formatter_class=_Formatter
        )

    def error(self, message: str) -> NoReturn:
        """Refuses the words of the user.

        Raises:
            MedusaError: always.
        """
        message = message.removeprefix("argument ").replace("expected one argument", "give a value")
        message = re.sub(
            "ignored explicit argument (.*)", r"it takes no value, leave \1 out", message
        )
        raise MedusaError(f"{message}; {self._say_usage()}")

    def _say_usage(self) -> str:
        return f"usage: {self.usage} ({self.prog} -h explains it)"

    def check_flags(self, words: Sequence[str]) -> None:
        """Checks that each option exists: argparse would name the value that a misspelt one lacks.

        Raises:
            MedusaError: an option is unknown.
        """
        flags = [flag for action in self._actions for flag in action.option_strings]
        for word in takewhile(lambda word: word != "--", words):
            name, _, _ = word.partition("=")
            is_flag = name.startswith("--") and " " not in name
            if is_flag and not any(flag.startswith(name) for flag in flags):
                similar = get_close_matches(name, flags, n=1)
                if similar:
                    hint = f"did you mean {similar[0]}? {self._say_usage()}"
                    raise MedusaError(f"there is no option {name}: {hint}")
                self.error(f"there is no option {name}")


class _Formatter(argparse.HelpFormatter):
    """Formats help without breaking lines inside a flag, and keeps the lines of lists."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines = []
        for line in text.splitlines():
            entry = re.match(r"\s+\S+\s{2,}", line)
            rest = " " * len(entry[0]) if entry else ""
            lines.append(textwrap.fill(indent + line, width, subsequent_indent=indent + rest))
        return "\n".join(lines)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False)
