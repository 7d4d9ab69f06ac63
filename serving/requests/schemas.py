"""The bodies of requests; a field that is not listed here is an error."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, field_validator

from medusa_trt.runtime.options import AcceptanceName
from medusa_trt.serving.requests.messages import ChatMessage, NamedTool, Tool
from medusa_trt.serving.requests.values import Body, Flag, OrNull, Unsupported

MAX_CHOICES = 128
"""Most replies to one request, as in OpenAI's API."""

_MAX_DIGITS = 20
"""Most digits of a token id."""

_Text = Annotated[str, Field(min_length=1)]
_Name = Annotated[str, Field(max_length=256)]
_TokenId = Annotated[int, Field(ge=0)]
_Penalty = Annotated[float, Field(ge=-2, le=2), OrNull()]


class StreamOptions(Body):
    """What a stream holds besides the reply; this server never adds noise to its length.

    `continuous_usage_stats` is vLLM's: each chunk has the counts so far.
    """

    include_usage: Flag = False
    continuous_usage_stats: Flag = False
    include_obfuscation: Literal[False] | None = None


class JsonSchema(Body):
    """A JSON schema that the reply conforms to, whatever `strict` is."""

    name: str
    description: str | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None


class TextFormat(Body):
    """Any text."""

    type: Literal["text"]


class JsonObjectFormat(Body):
    """Any JSON object."""

    type: Literal["json_object"]


class JsonSchemaFormat(Body):
    """JSON that conforms to a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[
    TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")
]


class ReplyFields(Body):
    """What requests for replies share.

    The fields from `top_k` on are no part of OpenAI's API; `GenerationOptions` explains them, and
    docs/serving.md `steps`. Of OpenAI's fields whose work this server does not do, the values are
    allowed that ask for what it does anyway.
    """

    model: str | None = None
    stream: Flag = False
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES), OrNull()] = 1
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2), OrNull()] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1), OrNull()] = 1.0
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: _Text | Annotated[list[_Text], Field(max_length=16)] | None = None
    presence_penalty: _Penalty = 0.0
    frequency_penalty: _Penalty = 0.0
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    user: _Name | None = None
    safety_identifier: _Name | None = None
    prompt_cache_key: _Name | None = None
    response_format: ResponseFormat | None = None
    top_k: Annotated[int, Field(ge=0), OrNull()] = 0
    min_p: Annotated[float, Field(ge=0, le=1), OrNull()] = 0.0
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100), OrNull()] = 1.0
    ignore_eos: Flag = False
    stop_token_ids: Annotated[list[_TokenId], Field(max_length=128)] | None = None
    regex: str | None = None
    grammar: str | None = None
    acceptance: AcceptanceName | None = None
    posterior_threshold: Annotated[float, Field(ge=0, le=1)] | None = None
    posterior_alpha: Annotated[float, Field(ge=0, le=1)] | None = None
    lookup_ngram: Annotated[int, Field(ge=0, le=16), OrNull()] = 3
    tree: _Name | None = None
    steps: Flag = False

    @property
    def shows_usage(self) -> bool:
        """Whether a stream ends with the counts of its tokens."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def counts_always(self) -> bool:
        """Whether each chunk of a stream has the counts so far."""
        return self.stream_options is not None and self.stream_options.continuous_usage_stats

    @field_validator("logit_bias")
    @classmethod
    def _check_keys(cls, biases: dict[str, float] | None) -> dict[str, float] | None:
        for key in biases or ():
            if not (key.isascii() and key.isdecimal() and len(key) <= _MAX_DIGITS):
                shown = key[:_MAX_DIGITS]
                raise ValueError(f"{shown!r} is no token id: the keys are whole numbers as texts")
        return biases


class ChatRequest(ReplyFields):
    """Body of /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: Flag = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Annotated[list[Tool], Field(min_length=1, max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    store: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None
    modalities: Annotated[list[Literal["text"]], Field(min_length=1)] | None = None
    prompt_cache_retention: Literal["in_memory"] | None = None
    prompt_cache_options: Annotated[None, Unsupported()] = None
    metadata: Annotated[None, Unsupported()] = None
    audio: Annotated[None, Unsupported()] = None
    moderation: Annotated[None, Unsupported()] = None
    prediction: Annotated[None, Unsupported()] = None
    verbosity: Annotated[None, Unsupported()] = None
    web_search_options: Annotated[None, Unsupported()] = None
    reasoning_effort: Annotated[
        None, Unsupported("give a variable of the model's template in chat_template_kwargs")
    ] = None
    functions: Annotated[None, Unsupported("use tools")] = None
    function_call: Annotated[None, Unsupported("use tool_choice")] = None


class CompletionRequest(ReplyFields):
    """Body of /v1/completions; a prompt is text or token ids, and there may be several."""

    prompt: (
        str
        | Annotated[list[str], Field(min_length=1)]
        | Annotated[list[_TokenId], Field(min_length=1)]
        | Annotated[list[Annotated[list[_TokenId], Field(min_length=1)]], Field(min_length=1)]
    )
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: Flag = False
    best_of: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    suffix: Annotated[None, Unsupported()] = None


class TokenizeRequest(Body):
    """Body of /tokenize: a text, or the messages of a conversation."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1)] | None = None
    add_special_tokens: Flag = True


class DetokenizeRequest(Body):
    """Body of /detokenize."""

    model: str | None = None
    tokens: list[_TokenId]


class ErrorDetail(BaseModel):
    """What was wrong with a request."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """Body of every error."""

    error: ErrorDetail
