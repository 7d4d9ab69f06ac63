"""The loop of a chat: reads entries, and shows replies and the results of commands.

It knows no terminal: a `Console` reads and writes.
"""

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
from medusa_trt.runtime.text.prompts import ChatPrompt, Message

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
        status: shows a line that is not part of a reply.
        details: shows the statistics of a reply; None if they are not wanted.
    """

    read_line: Callable[[str], str]
    write: Callable[[str], None]
    status: Callable[[str], None]
    details: Callable[[str], None] | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """A message or a command, as the user entered it; a quoted text is always a message."""

    text: str
    is_quoted: bool = False


@dataclass(frozen=True, slots=True)
class _Command:
    argument: str
    help: str
    run: Callable[[str], None]


class Chat:
    """A conversation that a user holds with a session through a console."""

    def __init__(
        self,
        session: MedusaSession,
        conversation: Conversation,
        options: GenerationOptions,
        console: Console,
        make_prompt: Callable[..., ChatPrompt] = ChatPrompt,
    ) -> None:
        """Prepares the conversation.

        Args:
            session: makes the replies; its model must have a chat template.
            conversation: the exchanges so far, and the system message.
            options: how each reply is made.
            console: where the chat reads and writes.
            make_prompt: makes a prompt of `messages`; it may add tools and variables.

        Raises:
            PromptError: the model has no chat template, or the template refuses the system
                message.
            TreeError: the tree asks for more than the heads offer.
        """
        self.conversation, self.options = conversation, options
        self.num_errors = 0
        self._session, self._console = session, console
        self._make_prompt = make_prompt
        self._last: Generation | None = None
        self._has_left = False
        self._commands = {
            "/help": _Command("", "show this list", self._help),
            "/reset": _Command("", "start over; the system message stays", self._reset),
            "/continue": _Command("", "go on with the last reply", self._continue),
            "/regen": _Command("", "replace the last reply by another one", self._regenerate),
            "/save": _Command("FILE", "write the conversation to FILE", self._save),
            "/load": _Command(
                "FILE", "go on with a saved conversation, sampled as it was", self._load
            ),
            "/stats": _Command("", "show statistics of the last reply", self._stats),
            "/system": _Command("TEXT", "set the system message; - removes it", self._system),
            "/quit": _Command("", "leave", self._quit),
        }
        if not session.text.has_chat_template:
            raise PromptError(
                f"{session.bundle.path} has no chat template, so its model cannot chat: "
                "use medusa-trt generate"
            )
        if options.tree is not None:
            session.bundle.manifest.check_tree(options.tree)
        self._check_template(conversation.system)

    def run(self) -> None:
        """Answers entries until /quit, the end of the input, or Ctrl-C at the prompt."""
        while not self._has_left:
            try:
                entry = read_entry(self._console.read_line)
            except (EOFError, KeyboardInterrupt):
                return
            except MedusaError as error:
                self._show_error(error)
                continue
            self.answer(entry)

    def answer(self, entry: Entry) -> None:
        """Replies to a message or runs a command; an error is shown and changes nothing."""
        try:
            if not entry.text.strip():
                return
            if entry.text.startswith("/") and not entry.is_quoted:
                self._run_command(entry.text)
            else:
                self._reply_to(entry.text)
        except MedusaError as error:
            self._show_error(error)

    def _run_command(self, text: str) -> None:
        name, *rest = text.split(maxsplit=1)
        argument = rest[0].strip() if rest else ""
        command = self._commands.get(name)
        if command is None:
            raise PromptError(
                f"there is no command {name}: /help lists the commands, and "
                f"{_QUOTES}{name} ...{_QUOTES} sends it"
            )
        if bool(argument) != bool(command.argument):
            raise PromptError(f"usage: {name} {command.argument}".rstrip())
        command.run(argument)

    def _reply_to(self, user: str) -> None:
        reply = self._show_reply(self.conversation.messages(user))
        if reply is not None:
            self.conversation.add(user, reply)

    def _continue(self, _: str) -> None:
        begun = self.conversation.last.assistant
        reply = self._show_reply(self.conversation.messages())
        if reply is not None:
            self.conversation.replace_last(begun + reply)

    def _regenerate(self, _: str) -> None:
        messages = self.conversation.make_messages_of_last()
        replaced = self.conversation.last.assistant
        sampling = self.options.sampling
        if sampling.seed is not None:
            sampling = replace(sampling, seed=(sampling.seed + 1) % 2**64)
            self.options = replace(self.options, sampling=sampling)
        reply = self._show_reply(messages)
        if reply is None:
            return
        self.conversation.replace_last(reply)
        if reply == replaced and sampling.temperature == 0:
            self._console.status(
                "the reply is the same, as always at temperature 0: start the chat with "
                "--temperature for other replies"
            )

    def _show_reply(self, messages: list[Message]) -> str | None:
        """Shows the reply to these messages as it is made.

        Returns:
            The text of the reply; None if the reply was ended before its first text.
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
            if generation is None or _is_empty(generation):
                self._console.status("no reply: the conversation stays as it was")
                return None
            self._show_end(generation)
            return generation.text

    def _generate(self, messages: list[Message], begin: Callable[[], None]) -> Generation:
        prompt = self._make_prompt(messages=messages)
        self._session.encode(prompt)
        try:
            stream = self._session.stream(prompt, self.options)
        except PromptError as error:
            raise PromptError(f"{error} ({self._limits()}), or /reset to start over") from error
        generation = None
        for event in stream:
            begin()
            self._console.write(event.text)
            generation = event.generation
        assert generation is not None, "the last event of a stream has the generation"
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
        path = _path_from_argument(argument)
        model = self._session.bundle.manifest.model.name
        SavedConversation(model, self.options, self.conversation).save(path)
        self._console.status(f"wrote {path} ({_count_exchanges(self.conversation)})")

    def _load(self, argument: str) -> None:
        path = _path_from_argument(argument)
        saved = SavedConversation.load(path)
        self._check_template(saved.conversation.system)
        self.conversation = saved.conversation
        self.options = replace(
            self.options,
            max_new_tokens=saved.options.max_new_tokens,
            acceptance=saved.options.acceptance,
            sampling=saved.options.sampling,
        )
        self._last = None
        model = self._session.bundle.manifest.model.name
        change = "" if saved.model == model else f"; {saved.model} wrote it, {model} goes on"
        facts = f"{_count_exchanges(self.conversation)}, {_line_from_options(self.options)}"
        self._console.status(f"read {path} ({facts}){change}")

    def _stats(self, _: str) -> None:
        num_tokens = 0
        if self.conversation.exchanges:
            prompt = self._make_prompt(messages=self.conversation.messages())
            num_tokens = len(self._session.encode(prompt))
        lines = [
            f"conversation: {_count_exchanges(self.conversation)}, {num_tokens} of "
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
        self._has_left = True

    def _check_template(self, system: str | None) -> None:
        """Checks that the chat template takes this system message, before it is kept.

        Raises:
            PromptError: the template refuses it.
        """
        if system is not None:
            messages = Conversation(system).messages("?")
            self._session.encode(self._make_prompt(messages=messages))

    def _show_error(self, error: MedusaError) -> None:
        self.num_errors += 1
        self._console.status(f"error: {' '.join(str(error).split())}")


def read_entry(read_line: Callable[[str], str]) -> Entry:
    """Reads one entry: a line, lines joined by backslashes, or a quoted block.

    Ctrl-C in a later line drops the entry: an empty one is returned.

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
    """One line with the statistics of a reply."""
    return (
        f"{stats.new_tokens} tokens, {stats.tokens_per_s:.1f} tokens/s, "
        f"mean accepted length {stats.mean_accept_length:.2f}, "
        f"{stats.cached_tokens} of {stats.prompt_tokens} prompt tokens cached"
    )


def _is_empty(generation: Generation) -> bool:
    """Whether the user or an error ended the reply before its first text."""
    return generation.finish_reason in ("cancelled", "error") and not generation.text


def _path_from_argument(argument: str) -> Path:
    if "\0" in argument:
        raise PromptError("a file's name cannot hold a null character: choose another")
    return Path(os.path.expanduser(argument))


def _line_from_options(options: GenerationOptions) -> str:
    """One line with the options that differ from their defaults."""
    sampling, defaults = options.sampling, GenerationOptions().sampling
    shown = [f"temperature {sampling.temperature:g}"]
    for name in ("top_k", "top_p", "min_p", "seed"):
        if (value := getattr(sampling, name)) != getattr(defaults, name):
            shown.append(f"{name} {value}")
    shown.append(f"acceptance {options.rule}")
    if options.max_new_tokens is not None:
        shown.append(f"at most {options.max_new_tokens} tokens per reply")
    return ", ".join(shown)


def _count_exchanges(conversation: Conversation) -> str:
    num = len(conversation.exchanges)
    return f"{num} exchange{'' if num == 1 else 's'}"


@contextmanager
def _ctrl_c_ends_reply(session: MedusaSession) -> Iterator[Callable[[], None]]:
    """Makes Ctrl-C end the reply instead of the chat.

    While the session reads the prompt, Ctrl-C interrupts at once. The reply calls the function that
    this yields as it begins; from then on Ctrl-C asks the session to stop after the current step,
    since an exception could come after a token is made and before it is shown.
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
