"""Parts that all benchmark scripts share: parser, error messages, checks, JSON output."""

import argparse
import http.client
import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import msgspec

from medusa_trt.calibration.noise import CoreWatch, Noise
from medusa_trt.errors import MedusaError
from medusa_trt.files import check_writable, replace_file


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of the description, and adds the default to each option that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help or ""
        if "(default" in text or action.default in (None, False, argparse.SUPPRESS):
            return text
        return f"{text} (default: %(default)s)"


def make_parser(docstring: str | None) -> argparse.ArgumentParser:
    """Creates a parser that describes a script by its docstring."""
    return argparse.ArgumentParser(description=docstring, formatter_class=_HelpFormatter)


def add_bundles(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    """Adds the positional argument: `bundle`, or `bundles` for several."""
    text = "folder of an exported bundle"
    if several:
        parser.add_argument("bundles", type=Path, nargs="+", metavar="BUNDLE", help=text)
    else:
        parser.add_argument("bundle", type=Path, metavar="BUNDLE", help=text)


def add_numbers(parser: argparse.ArgumentParser, *numbers: tuple[str, int, str]) -> None:
    """Adds options with an integer: name, default and help of each."""
    for name, default, text in numbers:
        parser.add_argument(name, type=int, default=default, metavar="N", help=text)


def report_errors(main: Callable[[], int]) -> Callable[[], int]:
    """Makes `main` print a `MedusaError` as one line and return 2."""

    @wraps(main)
    def run() -> int:
        try:
            return main()
        except MedusaError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2

    return run


def check_threads(threads: Iterable[int]) -> None:
    """Checks numbers of threads before anything is measured.

    Raises:
        MedusaError: this process may not use that many cores.
    """
    num_cores = len(os.sched_getaffinity(0))
    for number in threads:
        if not 1 <= number <= num_cores:
            raise MedusaError(f"--threads is {number}: this process may use 1 to {num_cores}")


@contextmanager
def name_busy_machine(num_threads: int | None) -> Iterator[None]:
    """Prints a warning if other programs used cores that the measurement needed."""
    cores = CoreWatch()
    yield
    warning = Noise.from_samples(cores.count_free_cores(), num_threads, []).warning
    if warning is not None:
        print(warning, file=sys.stderr)


def check_output(file: Path | None) -> None:
    """Checks before anything is measured that an output file can be written.

    Raises:
        MedusaError: it cannot.
    """
    if file is not None:
        check_writable(file)


def write_json(file: Path | None, value: object) -> None:
    """Writes a value to a JSON file, if one was given.

    Raises:
        MedusaError: the file cannot be written.
    """
    if file is not None:
        with replace_file(file) as temporary:
            temporary.write_bytes(msgspec.json.format(msgspec.json.encode(value), indent=1))
        print(f"wrote {file}", file=sys.stderr)


def parse_answer(data: bytes) -> tuple[int, bytes]:
    """Splits a whole HTTP answer, as it came over a connection, into its status and its content."""
    answer = http.client.HTTPResponse(_Received(data))  # type: ignore[arg-type]
    answer.begin()
    return answer.status, answer.read()


class _Received:
    """Bytes that `HTTPResponse` takes for a connection."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, mode: str) -> Any:
        """Opens the bytes."""
        return io.BytesIO(self._data)
