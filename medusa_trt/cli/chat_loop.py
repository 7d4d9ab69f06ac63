"""The chat's loop: entries in, replies and command results out; it knows no terminal."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from medusa_trt.errors import GenerationError, MedusaError, PromptError
from medusa_trt.runtime.conversation import Conversation, SavedConversation
from medusa_trt.runtime.options import GenerationOptions
from medusa_trt.runtime.reply import Generation, GenerationStats
from medusa_trt.runtime.session import MedusaSession
from medusa_trt.runtime.text import Message

PROMPT = ">>> "
CONTINUATION = "... "
_QUOTES = '"""'

_INPUT_HELP = f"""\
A line that ends in \\ goes on in the next one; {_QUOTES} opens and closes a message of many lines,
which may begin with /. Ctrl-C ends a reply and keeps what is there; at the prompt it leaves."""


@dataclass(frozen=True, slots=True)
class Console:
    """Where the chat reads and writes.

    Attributes:
        read_line: shows a prompt and returns a line without its end; EOFError at the end.
        write: shows a piece of a reply.
        status: shows a line that is no part of a reply.
        details: shows a reply's statistics; None where nobody asked for them.
    """

    read_line: Callable[[str], str]
    write: Callable[[str], None]
    status: Callable[[str], None]
    details: Callable[[str], None] | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """What the user entered; quoted text is never a command."""

    text: str
    is_quoted: bool = False


@dataclass(frozen=True, slots=True)
class _Command:
    argument: str
    help: str
    run: Callable[[str], None]


class Chat:
    """A conversation with a session, steered by what a console reads."""

    def __init__(
        self,
        session: MedusaSession,
        conversation: Conversation,
        options: GenerationOptions,
        console: Console,
    ) -> None:
        """Prepares the loop.

        Args:
            session: makes the replies; its model has a chat template.
            conversation: what was said before.
            options: of every reply.
            console: where to read and write.

        Raises:
            PromptError: the model has no chat template, or it refuses the system message.
            TreeError: the tree asks for more than the heads offer.
        """
        self.conversation, self.options = conversation, options
        self.num_errors = 0
        self._session, self._console = session, console
        self._last: Generation | None = None
        self._left = False
        self._commands = {
            "/help": _Command("", "show this list", self._help),
            "/reset": _Command("", "start over; the system message stays", self._reset),
            "/regen": _Command("", "replace the last reply by another one", self._regen),
            "/save": _Command("FILE", "write the conversation to FILE", self._save),
            "/load": _Command("FILE", "go on with a saved one, sampled as it was", self._load),
            "/stats": _Command("", "show what the last reply took", self._stats),
            "/system": _Command("TEXT", "set the system message; - removes it", self._system),
            "/quit": _Command("", "leave", self._quit),
        }
        if not session.text.has_chat_template:
            raise PromptError(
                f"{session.bundle.path} has no chat template, so its model cannot chat: "
                "use medusa-trt generate"
            )
        if options.tree is not None:
            heads = session.bundle.manifest.heads
            options.tree.check(heads.num_heads, heads.top_k)
        self._check_template(conversation.system)

    def run(self) -> None:
        """Takes entries until /quit, or the end of input or Ctrl-C at the prompt."""
        while not self._left:
            try:
                entry = read_entry(self._console.read_line)
            except (EOFError, KeyboardInterrupt):
                return
            except MedusaError as error:
                self._show_error(error)
                continue
            self.take(entry)

    def take(self, entry: Entry) -> None:
        """Answers a message or does a command; what fails is shown and changes nothing."""
        try:
            if not entry.text.strip():
                return
            if entry.text.startswith("/") and not entry.is_quoted:
                self._do(entry.text)
            else:
                self._answer(entry.text)
        except MedusaError as error:
            self._show_error(error)

    def _do(self, text: str) -> None:
        name, *rest = text.split(maxsplit=1)
        argument = rest[0].strip() if rest else ""
        command = self._commands.get(name)
        if command is None:
            raise PromptError(
                f"{name} is no command: /help lists them, and {_QUOTES}{name} ...{_QUOTES} says it"
            )
        if bool(argument) != bool(command.argument):
            raise PromptError(f"usage: {name} {command.argument}".rstrip())
        command.run(argument)

    def _answer(self, user: str) -> None:
        reply = self._reply(self.conversation.messages(user))
        if reply is not None:
            self.conversation.add(user, reply)

    def _regen(self, _: str) -> None:
        messages, replaced = self.conversation.messages_of_last(), self.conversation.last.assistant
        sampling = self.options.sampling
        if sampling.seed is not None:
            sampling = replace(sampling, seed=(sampling.seed + 1) % 2**64)
            self.options = replace(self.options, sampling=sampling)
        reply = self._reply(messages)
        if reply is None:
            return
        self.conversation.replace_last(reply)
        if reply == replaced and sampling.temperature == 0:
            self._console.status(
                "the same again, as always at temperature 0: start with --temperature for others"
            )

    def _reply(self, messages: list[Message]) -> str | None:
        """Shows the reply to these messages as it is made.

        Returns:
            its text, or None if it was ended before there was any.
        """
        with _ctrl_c_ends_reply(self._session) as begin:
            generation, failure = None, None
            try:
                generation = self._generate(messages, begin)
            except KeyboardInterrupt:
                pass
            except GenerationError as error:
                assert isinstance(error.generation, Generation)
                generation, failure = error.generation, error
            self._console.write("\n")
            if failure is not None:
                self._show_error(failure)
            if generation is None or _is_nothing(generation):
                self._console.status("no reply: the conversation stays as it was")
                return None
            self._show_end(generation)
            return generation.text

    def _generate(self, messages: list[Message], begin: Callable[[], None]) -> Generation:
        prompt_ids = self._session.encode(messages)
        try:
            stream = self._session.stream(prompt_ids, self.options)
        except PromptError as error:
            raise PromptError(f"{error} ({self._limits()}), or /reset to start over") from error
        generation = None
        for event in stream:
            begin()
            self._console.write(event.text)
            generation = event.generation
        assert generation is not None, "a stream ends with its generation"
        return generation

    def _show_end(self, generation: Generation) -> None:
        self._last = generation
        if self._console.details is not None:
            self._console.details(line_from_stats(generation.stats))
        if generation.finish_reason == "cache_full":
            self._console.status(
                "the reply is cut, because the conversation fills the cache: /reset to start over, "
                f"or raise --max-length ({self._limits()})"
            )

    def _limits(self) -> str:
        limit = self._session.bundle.manifest.model.max_length
        return f"now {self._session.max_length}, this bundle allows {limit}"

    def _reset(self, _: str) -> None:
        self.conversation = Conversation(self.conversation.system)
        self._last = None
        self._console.status("the conversation is empty")

    def _save(self, argument: str) -> None:
        path = _path(argument)
        model = self._session.bundle.manifest.model.name
        SavedConversation(model, self.options, self.conversation).save(path)
        self._console.status(f"wrote {path} ({_count(self.conversation)})")

    def _load(self, argument: str) -> None:
        path = _path(argument)
        saved = SavedConversation.load(path)
        self._check_template(saved.conversation.system)
        self.conversation = saved.conversation
        self.options = replace(
            saved.options, tree=self.options.tree, lookup_ngram=self.options.lookup_ngram
        )
        self._last = None
        model = self._session.bundle.manifest.model.name
        other = "" if saved.model == model else f"; {saved.model} wrote it, {model} goes on"
        self._console.status(
            f"read {path} ({_count(self.conversation)}, {_line_from_options(self.options)}){other}"
        )

    def _stats(self, _: str) -> None:
        said = self.conversation.exchanges
        num_tokens = len(self._session.encode(self.conversation.messages())) if said else 0
        lines = [
            f"conversation: {_count(self.conversation)}, {num_tokens} of "
            f"{self._session.max_length} tokens",
            f"sampling: {_line_from_options(self.options)}",
        ]
        if self._last is not None:
            stats = self._last.stats
            lines += [
                f"last reply: {line_from_stats(stats)}, ended by {self._last.finish_reason}",
                f"its prompt: {stats.prompt_tokens} tokens, {stats.cached_tokens} of them cached, "
                f"the others read in {stats.prefill_s:.2f} s",
            ]
        self._console.status("\n".join(lines))

    def _system(self, argument: str) -> None:
        system = None if argument == "-" else argument
        self._check_template(system)
        self.conversation.system = system
        self._console.status("no system message" if system is None else "the system message is set")

    def _help(self, _: str) -> None:
        lines = [
            f"{f'{name} {command.argument}':13} {command.help}"
            for name, command in self._commands.items()
        ]
        self._console.status("\n".join([*lines, _INPUT_HELP]))

    def _quit(self, _: str) -> None:
        self._left = True

    def _check_template(self, system: str | None) -> None:
        """Some templates take no system message; that is better said at once."""
        if system is not None:
            self._session.text.render_chat(Conversation(system).messages("?"))

    def _show_error(self, error: MedusaError) -> None:
        self.num_errors += 1
        self._console.status(f"error: {' '.join(str(error).split())}")


def read_entry(read_line: Callable[[str], str]) -> Entry:
    """Reads one entry: a line, lines joined by backslashes, or a quoted block.

    Ctrl-C in a later line drops the entry; the empty one is returned.

    Raises:
        EOFError: the input has ended.
        KeyboardInterrupt: Ctrl-C in the first line.
        PromptError: the input ends inside an entry.
    """
    text = read_line(PROMPT)
    is_quoted = text.lstrip().startswith(_QUOTES)
    try:
        if is_quoted:
            text = text.lstrip().removeprefix(_QUOTES)
            while not text.rstrip().endswith(_QUOTES):
                text += "\n" + read_line(CONTINUATION)
            text = text.rstrip().removesuffix(_QUOTES).strip("\n")
        else:
            while text.endswith("\\"):
                text = text[:-1] + "\n" + read_line(CONTINUATION)
    except KeyboardInterrupt:
        return Entry("")
    except EOFError as error:
        missing = _QUOTES if is_quoted else "the line after \\"
        raise PromptError(f"the input ends before {missing}: nothing was sent") from error
    return Entry(text, is_quoted)


def line_from_stats(stats: GenerationStats) -> str:
    """A reply's statistics in one line."""
    return (
        f"{stats.new_tokens} tokens, {stats.tokens_per_s:.1f} tokens/s, "
        f"mean accepted length {stats.mean_accept_length:.2f}, "
        f"{stats.cached_tokens} of {stats.prompt_tokens} prompt tokens cached"
    )


def _is_nothing(generation: Generation) -> bool:
    """Whether the reply was ended from outside before its first text."""
    return generation.finish_reason in ("cancelled", "error") and not generation.text


def _path(argument: str) -> Path:
    if "\0" in argument:
        raise PromptError("a file's name cannot hold a null character: choose another")
    return Path(os.path.expanduser(argument))


def _line_from_options(options: GenerationOptions) -> str:
    sampling, plain = options.sampling, GenerationOptions()
    shown = [f"temperature {sampling.temperature:g}"]
    for name in ("top_k", "top_p", "min_p", "seed"):
        if (value := getattr(sampling, name)) != getattr(plain.sampling, name):
            shown.append(f"{name} {value}")
    shown.append(f"acceptance {options.rule}")
    if options.max_new_tokens is not None:
        shown.append(f"at most {options.max_new_tokens} tokens a reply")
    return ", ".join(shown)


def _count(conversation: Conversation) -> str:
    num = len(conversation.exchanges)
    return f"{num} exchange{'' if num == 1 else 's'}"


@contextmanager
def _ctrl_c_ends_reply(session: MedusaSession) -> Iterator[Callable[[], None]]:
    """Lets Ctrl-C end the reply and no more.

    While the prompt is read it interrupts at once. After `begin`, which this yields, it asks the
    session to stop after the step: an exception could fall between a token and its display.
    """
    has_begun = False

    def begin() -> None:
        nonlocal has_begun
        has_begun = True

    def end_reply(*_: object) -> None:
        if not has_begun:
            raise KeyboardInterrupt
        session.cancel()

    previous = signal.signal(signal.SIGINT, end_reply)
    try:
        yield begin
    finally:
        signal.signal(signal.SIGINT, previous)
