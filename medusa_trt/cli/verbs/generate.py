"""`medusa-trt generate`: replies to a prompt, or to the requests of a file."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

from medusa_trt.cli.arguments import (
    BundleArguments,
    SessionArguments,
    TemplateArguments,
    read_json,
)
from medusa_trt.cli.parser import Verb
from medusa_trt.errors import PromptError, check_range
from medusa_trt.files import decode_text, read_text
from medusa_trt.interrupts import find_interrupt_code
from medusa_trt.runtime.options import GenerationOptions

if TYPE_CHECKING:
    from medusa_trt.cli.requests import Request
    from medusa_trt.runtime.reply import Generation
    from medusa_trt.runtime.session import MedusaSession

_OFFERED = (
    *("max_new_tokens", "stop", "stop_ids", "echo", "logprobs"),
    *("sampling", "acceptance", "posterior_threshold", "posterior_alpha", "tree", "lookup_ngram"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateArguments(BundleArguments):
    """Reply to a prompt: text to standard output, statistics to standard error.

    Attributes:
        prompt: what the model replies to; - reads standard input.
        prompt_file: read the prompt from this file (default: none).
        messages: read a conversation instead: a JSON list of messages, or a file that /save of
            medusa-trt chat wrote; the reply goes on with a last message of the assistant (default:
            none).
        batch: reply to the requests of this file: on each line a JSON object with "prompt" or
            "messages", and options by their names in Python, as "max_new_tokens"; the other
            arguments are the defaults. The results are JSON lines in the same order (default:
            none).
        batch_size: most replies to the requests of a batch file that are made at the same time.
        raw: give the prompt to the model as it is, without the chat template.
        schema: make the reply JSON that conforms to this JSON schema: a file, or the schema itself
            (default: any text).
        regex: make the whole reply match this regular expression (default: any text).
        num_replies: number of replies; reply i is drawn with the seed plus i.
        json: write each reply as a JSON object on a line, with tokens, log-probabilities and times.
        template: what the chat template gets besides the messages.
        reply: how the reply is made.
        session: how the bundle is run.
    """

    prompt: Annotated[str | None, "PROMPT"] = None
    prompt_file: Annotated[Path | None, "--prompt-file FILE"] = None
    messages: Annotated[Path | None, "--messages FILE"] = None
    batch: Annotated[Path | None, "--batch FILE"] = None
    batch_size: int = 4
    raw: bool = False
    schema: Annotated[str | None, "--schema FILE"] = None
    regex: Annotated[str | None, "--regex TEXT"] = None
    num_replies: Annotated[int, "--n N"] = 1
    json: bool = False
    template: TemplateArguments = field(default_factory=TemplateArguments)
    reply: Annotated[GenerationOptions, _OFFERED] = field(default_factory=GenerationOptions)
    session: SessionArguments = field(default_factory=SessionArguments)

    def __post_init__(self) -> None:
        check_range(self, PromptError, "batch_size num_replies", 1)
        sources = (self.prompt, self.prompt_file, self.messages, self.batch)
        if sum(source is not None for source in sources) != 1:
            raise PromptError(
                "give one of PROMPT, --prompt-file, --messages and --batch, to say what the model "
                "replies to"
            )

    def make_requests(self) -> list["Request"]:
        """Reads what the model is to reply to.

        Raises:
            PromptError: a file cannot be read, a line of it is wrong, or arguments exclude each
                other.
        """
        from medusa_trt.cli.requests import Request, requests_from_file

        prompt = self.prompt
        if self.prompt_file is not None:
            prompt = _without_line_end(read_text(self.prompt_file, PromptError))
        elif prompt == "-":
            prompt = read_prompt(sys.stdin.buffer)
        request = Request(
            prompt="" if self.batch is not None else prompt,
            messages=() if self.messages is None else _read_messages(self.messages),
            system=self.template.system,
            tools=self.template.read_tools(),
            template_variables=self.template.read_variables() or None,
            raw=self.raw,
            schema=None if self.schema is None else _read_schema(self.schema),
            regex=self.regex,
            n=self.num_replies,
            options=self.reply,
        )
        if self.batch is not None:
            return requests_from_file(self.batch, request)
        return [request]


def generate(arguments: GenerateArguments) -> int:
    """Shows the reply as it is made, or the results of a batch.

    Returns:
        The exit code: 130 after a Ctrl-C and 143 after SIGTERM, which both end the reply.

    Raises:
        MedusaError: the bundle cannot be opened, or a prompt or an option cannot be used.
    """
    requests = arguments.make_requests()
    num_replies = sum(request.n for request in requests)
    batch_size = min(arguments.batch_size, num_replies) if arguments.batch is not None else 1
    with arguments.session.open(arguments.bundle, batch_size) as session:
        _show_thresholds(session, requests)
        if arguments.batch is not None:
            from medusa_trt.cli.batch import answer_batch

            return answer_batch(session, requests, arguments.batch)
        (request,) = requests
        if arguments.json:
            return _show_json(session, request)
        if request.n > 1:
            return _show_several(session, request)
        return _show_stream(session, request)


def _show_thresholds(session: "MedusaSession", requests: list["Request"]) -> None:
    manifest = session.bundle.manifest
    texts = [manifest.describe_thresholds(request.options) for request in requests]
    for text in dict.fromkeys(texts):
        if text is not None:
            print(text, file=sys.stderr, flush=True)


def _show_stream(session: "MedusaSession", request: "Request") -> int:
    prompt = request.make_prompt(session)
    for event in session.stream(prompt, request.make_options()):
        print(event.text, end="", flush=True)
        if event.generation is not None:
            generation = event.generation
    print(flush=True)
    return _show_end(session, [generation])


def _show_several(session: "MedusaSession", request: "Request") -> int:
    from medusa_trt.cli.requests import answer_request

    generations = answer_request(session, request)
    for index, generation in enumerate(generations):
        print(f"[{index}] {generation.text}", flush=True)
    return _show_end(session, generations)


def _show_json(session: "MedusaSession", request: "Request") -> int:
    from medusa_trt.cli.requests import answer_request, describe_reply, print_json

    generations = answer_request(session, request)
    for index, generation in enumerate(generations):
        print_json(describe_reply(session, request, index, generation))
    return _exit_code(generations)


def _show_end(session: "MedusaSession", generations: list["Generation"]) -> int:
    """Shows log-probabilities and statistics on standard error."""
    from medusa_trt.cli.requests import describe_logprobs

    print(file=sys.stderr)
    for generation in generations:
        for entry in generation.logprobs:
            place = describe_logprobs(session, entry)
            entries = [
                f"{token['logprob']:8.4f} {token['text']!r}" for token in [place, *place["top"]]
            ]
            print("  ".join(entries), file=sys.stderr)
        print(_line_from_generation(generation), file=sys.stderr)
    return _exit_code(generations)


def _line_from_generation(generation: "Generation") -> str:
    stats = generation.stats
    total_s = stats.prefill_s + stats.decode_s
    facts = [
        f"{stats.new_tokens} token{'s' * (stats.new_tokens != 1)} in {total_s:.2f} s "
        f"(first after {stats.prefill_s:.2f} s)"
    ]
    if stats.new_tokens > 1:
        facts.append(f"{stats.tokens_per_s:.1f} tokens/s")
        facts.append(f"mean accepted length {stats.mean_accept_length:.2f}")
    return ", ".join([*facts, f"ended by {generation.finish_reason}"])


def _exit_code(generations: list["Generation"]) -> int:
    is_cancelled = any(generation.finish_reason == "cancelled" for generation in generations)
    return find_interrupt_code() if is_cancelled else 0


def _read_messages(path: Path) -> tuple[Any, ...]:
    content = read_json(path)
    messages = content.get("messages") if isinstance(content, dict) else content
    if not isinstance(messages, list) or not messages:
        raise PromptError(
            f"{path} holds no messages: write a JSON list of objects with role and content"
        )
    return tuple(messages)


def _read_schema(text: str) -> Any:
    """A schema as the user gave it, or the content of the file that the user named."""
    return text if text.lstrip().startswith("{") else read_text(Path(text), PromptError)


def read_prompt(stream: BinaryIO) -> str:
    """Reads a prompt from standard input.

    A byte order mark at the beginning and the line end at the end belong to the file, and not to
    the prompt.

    Raises:
        PromptError: the bytes are not UTF-8.
    """
    return _without_line_end(decode_text(stream.read(), "standard input", PromptError))


def _without_line_end(text: str) -> str:
    return text.removesuffix("\n").removesuffix("\r")


VERBS = {"generate": Verb(GenerateArguments, generate)}
