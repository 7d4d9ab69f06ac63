"""The command line's chat: `medusa-trt chat BUNDLE`."""

import argparse
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from medusa_trt.cli.sampling import add_sampling_arguments, sampling_from_arguments
from medusa_trt.cli.session import (
    add_drafting_arguments,
    add_reply_limit,
    add_session_arguments,
    session_from_arguments,
)
from medusa_trt.errors import MedusaError
from medusa_trt.runtime.options import GenerationOptions
from medusa_trt.tree_configs import load_tree

if TYPE_CHECKING:
    from medusa_trt.cli.chat_loop import Console

_UNSHOWN = dict.fromkeys([*range(9), *range(11, 32), *range(127, 160)])
"""Control characters but tab and newline: a model must not steer the terminal."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `chat`."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="what medusa-export wrote")
    parser.add_argument(
        "--system", metavar="TEXT", help="the system message (default: the chat template's, if any)"
    )
    add_reply_limit(parser)
    add_sampling_arguments(parser)
    add_drafting_arguments(parser)
    add_session_arguments(parser)
    parser.add_argument(
        "--verbose", action="store_true", help="show statistics after replies, and tracebacks"
    )


def run(arguments: argparse.Namespace) -> None:
    """Chats until the user leaves.

    Replies go to standard output, everything else to standard error. Input that is no terminal is
    read to its end, an entry a line.

    Raises:
        MedusaError: the chat cannot start, or entries out of a file or pipe failed.
    """
    options = GenerationOptions(
        max_new_tokens=arguments.max_new_tokens,
        tree=load_tree(arguments.tree) if arguments.tree else None,
        lookup_ngram=arguments.lookup_ngram,
        sampling=sampling_from_arguments(arguments),
        acceptance=arguments.acceptance,
    )
    # Only now, so that other verbs and wrong options do not wait for it.
    from medusa_trt.cli.chat_loop import Chat
    from medusa_trt.runtime.conversation import Conversation

    is_terminal = sys.stdin.isatty()
    with (
        sigterm_leaves(),
        session_from_arguments(arguments.bundle, arguments) as session,
    ):
        console = _console(verbose=arguments.verbose)
        chat = Chat(session, Conversation(arguments.system), options, console)
        if is_terminal:
            tree = options.tree or session.bundle.tree
            console.status(
                f"{session.bundle.manifest.model.name}, tree {tree.name}, "
                f"up to {session.max_length} tokens; /help lists the commands"
            )
        chat.run()
    if chat.num_errors and not is_terminal:
        raise MedusaError(f"entries that failed: {chat.num_errors}; see above")


def _console(*, verbose: bool) -> "Console":
    from medusa_trt.cli.chat_loop import Console

    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    shows_colours = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    cleans = sys.stdout.isatty()

    def write(text: str) -> None:
        print(text.translate(_UNSHOWN) if cleans else text, end="", flush=True)

    def status(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def details(text: str) -> None:
        status(f"\x1b[2m{text}\x1b[0m" if shows_colours else text)

    return Console(_line_reader(), write, status, details if verbose else None)


def _line_reader() -> Callable[[str], str]:
    """Reads lines: edited and with a history in a terminal, without a prompt elsewhere."""
    if not sys.stdin.isatty():
        return lambda _: input()
    edits = sys.stdout.isatty()
    if edits:
        with suppress(ImportError):  # not on every platform
            import readline  # input() uses it once it is imported

            # Python turns it off; with it a paste of several lines is one message.
            readline.parse_and_bind("set enable-bracketed-paste on")

    def read_line(prompt: str) -> str:
        try:
            if edits:
                return input(prompt)
            print(prompt, end="", file=sys.stderr, flush=True)
            return input()
        except (EOFError, KeyboardInterrupt):
            print(file=sys.stderr)
            raise

    return read_line


@contextmanager
def sigterm_leaves() -> Iterator[None]:
    """Makes SIGTERM leave the chat: as a Ctrl-C it would only end the reply."""

    def leave(*_: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    previous = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
