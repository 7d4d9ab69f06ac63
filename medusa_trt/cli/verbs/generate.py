"""`medusa-trt generate`: the reply to one prompt."""

import sys
from dataclasses import dataclass, field
from typing import Annotated, BinaryIO

from medusa_trt.cli.arguments import BundleArguments, SessionArguments
from medusa_trt.cli.parser import Verb
from medusa_trt.errors import PromptError
from medusa_trt.interrupts import interrupted_exit_code
from medusa_trt.runtime.options import GenerationOptions

_OFFERED = (
    *("max_new_tokens", "stop", "stop_ids", "echo"),
    *("sampling", "acceptance", "tree", "lookup_ngram"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateArguments(BundleArguments):
    """Reply to one prompt: text to standard output, statistics to standard error.

    Attributes:
        prompt: what the model replies to; - reads standard input.
        raw: give the prompt to the model as it is, without the chat template.
        reply: how the reply is made.
        session: how the bundle is run.
    """

    prompt: Annotated[str, "PROMPT"]
    raw: bool = False
    reply: Annotated[GenerationOptions, _OFFERED] = field(default_factory=GenerationOptions)
    session: SessionArguments = field(default_factory=SessionArguments)


def generate(arguments: GenerateArguments) -> int:
    """Shows the reply as it is made.

    Returns:
        The exit code: 130 after a Ctrl-C and 143 after SIGTERM, which both end the reply.

    Raises:
        MedusaError: the bundle cannot be opened, or the prompt cannot be used.
    """
    prompt = read_prompt(sys.stdin.buffer) if arguments.prompt == "-" else arguments.prompt
    with arguments.session.open(arguments.bundle) as session:
        is_chat = session.text.has_chat_template and not arguments.raw
        messages = [{"role": "user", "content": prompt}]
        for event in session.stream(messages if is_chat else prompt, arguments.reply):
            print(event.text, end="", flush=True)
            if event.generation is not None:
                stats, reason = event.generation.stats, event.generation.finish_reason
    print(flush=True)
    total_s = stats.prefill_s + stats.decode_s
    facts = [
        f"{stats.new_tokens} token{'s' * (stats.new_tokens != 1)} in {total_s:.2f} s "
        f"(first after {stats.prefill_s:.2f} s)"
    ]
    if stats.new_tokens > 1:
        facts.append(f"{stats.tokens_per_s:.1f} tokens/s")
        facts.append(f"mean accepted length {stats.mean_accept_length:.2f}")
    print(f"\n{', '.join([*facts, f'ended by {reason}'])}", file=sys.stderr)
    return interrupted_exit_code() if reason == "cancelled" else 0


def read_prompt(stream: BinaryIO) -> str:
    """Reads a prompt from standard input.

    A byte order mark at the beginning and the line end at the end belong to the file, and not to
    the prompt.

    Raises:
        PromptError: the bytes are not UTF-8.
    """
    try:
        text = stream.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PromptError(
            f"standard input is not UTF-8 at byte {error.start}: convert the text first"
        ) from error
    return text.removesuffix("\n").removesuffix("\r")


VERBS = {"generate": Verb(GenerateArguments, generate)}
