"""`medusa-trt chat`: a conversation in a terminal, or with the lines of a file or pipe."""

import io
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Annotated

from medusa_trt.cli.arguments import BundleArguments, SessionArguments, TemplateArguments
from medusa_trt.cli.parser import Verb
from medusa_trt.errors import MedusaError, PromptError
from medusa_trt.files import decode_text
from medusa_trt.runtime.options import GenerationOptions

if TYPE_CHECKING:
    from medusa_trt.cli.chat_loop import Console

_HIDDEN = dict.fromkeys([*range(9), *range(11, 32), *range(127, 160)])
"""Control characters other than tab and newline: a model must not steer the terminal."""

_OFFERED = (
    *("max_new_tokens", "sampling", "acceptance", "posterior_threshold", "posterior_alpha"),
    *("tree", "lookup_ngram", "repetition_penalty", "presence_penalty", "frequency_penalty"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatArguments(BundleArguments):
    """Hold a conversation. Lines that begin with / are commands; /help lists them.

    Attributes:
        verbose: show statistics after each reply, and the traceback of an error.
        template: what the chat template gets besides the messages.
        reply: how replies are made.
        session: how the bundle is run.
    """

    verbose: bool = False
    template: TemplateArguments = field(default_factory=TemplateArguments)
    reply: Annotated[GenerationOptions, _OFFERED] = field(default_factory=GenerationOptions)
    session: SessionArguments = field(default_factory=SessionArguments)


def chat(arguments: ChatArguments) -> None:
    """Chats until the user leaves.

    Replies go to standard output, everything else to standard error. If the input is not a
    terminal, it is read to its end, and each line is an entry.
    """
    # These imports take long, and wrong options are refused before them.
    from medusa_trt.cli.chat_loop import Chat
    from medusa_trt.runtime.conversation import Conversation
    from medusa_trt.runtime.text.prompts import ChatPrompt

    is_terminal, template = sys.stdin.isatty(), arguments.template
    tools, variables = template.read_tools(), template.read_variables()
    make_prompt = partial(ChatPrompt, tools=tools, variables=variables)
    with (
        leave_on_sigterm(),
        arguments.session.open(arguments.bundle) as session,
    ):
        console = _make_console(verbose=arguments.verbose)
        conversation = Conversation(template.system)
        thresholds = session.bundle.manifest.describe_thresholds(arguments.reply)
        if thresholds is not None:
            console.status(thresholds)
        loop = Chat(session, conversation, arguments.reply, console, make_prompt)
        if is_terminal:
            tree = arguments.reply.tree
            trees = "trees grown at each step" if tree is None else f"tree {tree.name}"
            if tree is None and not session.decoder.drafter.grows_trees:
                trees = f"tree {session.bundle.tree.name}"
            console.status(
                f"{session.bundle.manifest.model.name}, {trees}, "
                f"up to {session.max_length} tokens; /help lists the commands"
            )
        loop.run()
    if loop.num_errors and not is_terminal:
        raise MedusaError(f"entries that failed: {loop.num_errors}; see above")


def _make_console(*, verbose: bool) -> "Console":
    from medusa_trt.cli.chat_loop import Console

    if isinstance(sys.stdin, io.TextIOWrapper):
        # An entry that is not UTF-8 is refused as a whole, and not changed.
        sys.stdin.reconfigure(errors="surrogateescape")
    shows_colours = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    cleans = sys.stdout.isatty()

    def write(text: str) -> None:
        print(text.translate(_HIDDEN) if cleans else text, end="", flush=True)

    def status(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def details(text: str) -> None:
        status(f"\x1b[2m{text}\x1b[0m" if shows_colours else text)

    return Console(_make_line_reader(), write, status, details if verbose else None)


def _make_line_reader() -> Callable[[str], str]:
    """Reads lines: edited and with a history in a terminal, without a prompt elsewhere."""
    if not sys.stdin.isatty():
        numbers = count(1)

        def read_piped_line(_: str) -> str:
            line = sys.stdin.buffer.readline()
            if not line:
                raise EOFError
            source = f"line {next(numbers)} of standard input"
            return decode_text(line, source, PromptError).removesuffix("\n").removesuffix("\r")

        return read_piped_line
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
def leave_on_sigterm() -> Iterator[None]:
    """Makes SIGTERM leave the chat: as a Ctrl-C it would only end the reply."""

    def leave(*_: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    previous = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


VERBS = {"chat": Verb(ChatArguments, chat)}
