"""A chat without a terminal: a test gives its lines and reads what it showed."""

from collections.abc import Callable

from medusa_trt.cli.chat_loop import Chat, Console
from medusa_trt.runtime.conversation import Conversation
from medusa_trt.runtime.options import GenerationOptions, SamplingOptions
from medusa_trt.runtime.session import MedusaSession

SHORT = GenerationOptions(max_new_tokens=12)
LONG = GenerationOptions(max_new_tokens=100, ignore_eos=True)
SAMPLED = GenerationOptions(
    max_new_tokens=12, sampling=SamplingOptions(temperature=1.0, seed=7), ignore_eos=True
)


class Driver:
    """A chat whose lines a test gives, and what it showed."""

    def __init__(
        self, session: MedusaSession, options: GenerationOptions = SHORT, system: str | None = None
    ) -> None:
        self.lines: list[str | type[BaseException]] = []
        self.prompts: list[str] = []
        self.written: list[str] = []
        self.shown: list[str] = []
        self.details: list[str] = []
        self.on_write: Callable[[], None] = lambda: None
        self.session = session
        console = Console(self._read, self._write, self.shown.append, self.details.append)
        self.chat = Chat(session, Conversation(system), options, console)

    def say(self, *lines: str | type[BaseException]) -> list[str]:
        """Runs the loop over these lines; returns what it showed beside the replies."""
        self.lines[:] = lines
        self.shown.clear()
        self.written.clear()
        self.chat.run()
        return self.shown

    @property
    def exchanges(self) -> list[tuple[str, str]]:
        return [(e.user, e.assistant) for e in self.chat.conversation.exchanges]

    def _read(self, prompt: str) -> str:
        self.prompts.append(prompt)
        line = self.lines.pop(0) if self.lines else EOFError
        if isinstance(line, str):
            return line
        raise line

    def _write(self, text: str) -> None:
        self.written.append(text)
        self.on_write()
