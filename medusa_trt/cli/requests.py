"""Requests: prompts with the options of their replies, from arguments or from a batch file."""

import codecs
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from medusa_trt.errors import MedusaError, PromptError
from medusa_trt.files import read_text
from medusa_trt.runtime import scheduler
from medusa_trt.runtime.decoding.choosing import TokenLogprobs
from medusa_trt.runtime.options import GenerationOptions, SamplingOptions, add_to_seed
from medusa_trt.runtime.processors.grammar import Grammar
from medusa_trt.runtime.reply import Generation
from medusa_trt.runtime.session import MedusaSession, Prompt
from medusa_trt.runtime.text.prompts import ChatPrompt, Message
from medusa_trt.tree_configs import load_tree
from medusa_trt.types_of_options import check_types

_SAMPLING = {f.name for f in fields(SamplingOptions)}
_REPLY = {f.name for f in fields(GenerationOptions)} - {"sampling", "processors", "grammar"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the model replies to, and how.

    Attributes:
        prompt: a text.
        messages: a conversation instead of a text.
        system: a system message before the prompt.
        tools: functions that the model may call, for the chat template.
        template_variables: further values for the chat template.
        raw: whether the prompt goes to the model without the chat template.
        schema: a JSON schema that the reply must conform to.
        regex: a regular expression that the whole reply must match.
        n: number of replies.
        id: what the user calls the request.
        options: how each reply is made.
        line: the line of the batch file that holds it.
    """

    prompt: str | None = None
    messages: tuple[Message, ...] = ()
    system: str | None = None
    tools: tuple[Mapping[str, Any], ...] = ()
    template_variables: dict[str, Any] | None = None
    raw: bool = False
    schema: dict[str, Any] | str | None = None
    regex: str | None = None
    n: int = 1
    id: str | int | None = None
    options: GenerationOptions = field(default_factory=GenerationOptions)
    line: int | None = None

    def __post_init__(self) -> None:
        check_types(self, PromptError)
        if (self.prompt is None) == (not self.messages):
            raise PromptError("there must be a prompt or messages, and not both")
        if self.raw and (self.messages or self.system or self.tools or self.template_variables):
            raise PromptError("a raw prompt has no messages, system message, tools or variables")
        if self.messages and self.system is not None:
            raise PromptError("messages hold their own system message: leave system out")
        if self.schema is not None and self.regex is not None:
            raise PromptError("schema and regex exclude each other: give one")
        if self.n < 1:
            raise PromptError(f"n is {self.n}: it must be at least 1")

    def make_options(self) -> GenerationOptions:
        """Makes the options of a reply, with the grammar.

        Raises:
            PromptError: the options contradict each other.
        """
        if self.schema is not None:
            return replace(self.options, grammar=Grammar.from_json_schema(self.schema))
        if self.regex is not None:
            return replace(self.options, grammar=Grammar.from_regex(self.regex))
        return self.options

    def make_prompt(self, session: MedusaSession) -> Prompt:
        """Makes the prompt for a bundle with a chat template or without one.

        Raises:
            PromptError: the bundle has no chat template, and the prompt needs it.
        """
        is_chat = session.text.has_chat_template and not self.raw
        if self.prompt is not None and not is_chat:
            if self.system or self.tools or self.template_variables:
                raise PromptError(
                    f"{session.bundle.path} has no chat template, which a system message, tools "
                    "and variables need: leave them out"
                )
            return self.prompt
        messages = list(self.messages)
        if self.prompt is not None:
            messages.append({"role": "user", "content": self.prompt})
        if self.system is not None:
            messages.insert(0, {"role": "system", "content": self.system})
        variables = self.template_variables or {}
        return ChatPrompt(messages=messages, tools=self.tools, variables=variables)

    def make_replies(self, session: MedusaSession) -> Iterator[scheduler.Request]:
        """Makes what the session's scheduler takes, for each of the `n` replies.

        Raises:
            PromptError: the request cannot be used with this bundle.
        """
        prompt, options = self.make_prompt(session), self.make_options()
        for index in range(self.n):
            yield session.make_request(prompt, add_to_seed(options, index), streamed=False)

    def describe_place(self, reply: int) -> dict[str, Any]:
        """Describes what a result belongs to: the user's name of the request, and the reply."""
        place: dict[str, Any] = {} if self.id is None else {"id": self.id}
        return place | ({"reply": reply} if self.n > 1 else {})


def requests_from_file(path: Path, defaults: Request) -> list[Request]:
    """Reads a batch file.

    Args:
        path: a file with a JSON object on each line: the attributes of `Request` by name, and with
            them the options of the reply. Empty lines are skipped.
        defaults: what holds where a line says nothing else; its prompt does not count.

    Raises:
        PromptError: the file cannot be read, has no requests, or a line is wrong; its number is
            named.
    """
    requests = []
    for number, line in enumerate(read_text(path, PromptError).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
            if not isinstance(values, dict):
                raise PromptError("a request is a JSON object")
            request = _request_from_values(values, replace(defaults, line=number))
            request.make_options()
        except (MedusaError, ValueError) as error:
            raise PromptError(f"line {number} of {path}: {error}") from error
        requests.append(request)
    if not requests:
        raise PromptError(f"{path} has no requests: write a JSON object on each line")
    return requests


def _request_from_values(values: dict[str, Any], defaults: Request) -> Request:
    fields_of_line = {f.name for f in fields(Request)} - {"options", "line"}
    names = fields_of_line | _REPLY | _SAMPLING
    for name in values:
        if name not in names:
            similar = get_close_matches(name, names, n=1)
            hint = (
                f"did you mean {similar[0]}?"
                if similar
                else f"there are {', '.join(sorted(names))}"
            )
            raise PromptError(f"there is no option {name!r}: {hint}")
    reply = {name: value for name, value in values.items() if name in _REPLY}
    if isinstance(reply.get("tree"), str):
        reply["tree"] = load_tree(reply["tree"])
    if isinstance(reply.get("stop"), str):
        reply["stop"] = (reply["stop"],)
    sampling = {name: value for name, value in values.items() if name in _SAMPLING}
    options = replace(
        defaults.options, sampling=replace(defaults.options.sampling, **sampling), **reply
    )
    has_grammar = bool(values.keys() & {"schema", "regex"})
    line_defaults = replace(defaults, schema=None, regex=None) if has_grammar else defaults
    if "messages" in values and "system" not in values:
        line_defaults = replace(line_defaults, system=None)
    changed = {name: value for name, value in values.items() if name in fields_of_line}
    return replace(line_defaults, **{"prompt": None, "messages": ()} | changed, options=options)


def answer_request(session: MedusaSession, request: Request) -> list[Generation]:
    """Makes the replies to one request."""
    prompt, options = request.make_prompt(session), request.make_options()
    if request.n == 1:
        return [session.generate(prompt, options)]
    return session.generate_batch([prompt] * request.n, options)


def describe_reply(
    session: MedusaSession, request: Request, reply: int, generation: Generation
) -> dict[str, Any]:
    """Describes a reply to a request as a JSON object."""
    stats = generation.stats
    described = request.describe_place(reply) | {
        "text": generation.text,
        "finish_reason": generation.finish_reason,
        "token_ids": generation.token_ids,
    }
    for name in ("logprobs", "prompt_logprobs"):
        if entries := getattr(generation, name):
            described[name] = [describe_logprobs(session, entry) for entry in entries]
    times = asdict(stats) | {
        "tokens_per_s": stats.tokens_per_s,
        "mean_accept_length": stats.mean_accept_length,
    }
    del times["accept_lengths"]
    described["stats"] = {
        name: round(value, 6) if isinstance(value, float) else value
        for name, value in times.items()
    }
    return described


def describe_logprobs(session: MedusaSession, entry: TokenLogprobs) -> dict[str, Any]:
    """Describes the log-probabilities at one position as a JSON object."""

    def describe(token: int, logprob: float) -> dict[str, Any]:
        return {"token_id": token, "text": session.text.decode([token]), "logprob": logprob}

    return describe(entry.token, entry.logprob) | {"top": [describe(*pair) for pair in entry.top]}


def print_json(value: dict[str, Any]) -> None:
    """Prints an object on a line of its own; letters as escapes where the output is not UTF-8."""
    is_utf8 = codecs.lookup(sys.stdout.encoding or "utf-8").name == "utf-8"
    print(json.dumps(value, ensure_ascii=not is_utf8), flush=True)
