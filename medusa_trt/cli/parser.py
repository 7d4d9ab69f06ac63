"""The command line's parser: its help says every default."""

import argparse
import textwrap
from typing import Any

_ARGPARSES_OWN = " (default: %(default)s)"
"""What Python before 3.13 adds to the help of Boolean options."""


class Parser(argparse.ArgumentParser):
    """A parser whose help pages, and those of its verbs, are made by `DefaultsFormatter`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=DefaultsFormatter, **options)


class DefaultsFormatter(argparse.RawDescriptionHelpFormatter):
    """Appends an option's default where its help does not name one in its own words.

    Lines are not broken within an option's name.
    """

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)

    def _get_help_string(self, action: argparse.Action) -> str:
        text, default = action.help or "", action.default
        if isinstance(action, argparse.BooleanOptionalAction):
            text = text.removesuffix(_ARGPARSES_OWN)
            if default is not None:
                return f"{text} (default: {action.option_strings[0 if default else 1]})"
        if "default:" in text or isinstance(default, bool) or default is argparse.SUPPRESS:
            return text
        return f"{text} (default: %(default)s)" if isinstance(default, int | float | str) else text
