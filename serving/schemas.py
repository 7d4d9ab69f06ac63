"""The bodies of requests; a field that is not listed here is an error."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from medusa_trt.runtime.options import AcceptanceName

MAX_CHOICES = 128
"""Most replies to one request, as in OpenAI's API."""

_Text = Annotated[str, Field(min_length=1)]
_TokenId = Annotated[int, Field(ge=0)]


class Body(BaseModel):
    """A JSON object whose values have exactly the types of its fields."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(Body):
    """What a stream holds besides the reply."""

    include_usage: bool = False


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
    docs/serving.md `steps`.
    """

    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] = 1
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    stop: _Text | Annotated[list[_Text], Field(max_length=16)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    user: Annotated[str, Field(max_length=256)] | None = None
    response_format: ResponseFormat | None = None
    top_k: Annotated[int, Field(ge=0)] = 0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] = 1.0
    ignore_eos: bool = False
    regex: str | None = None
    grammar: str | None = None
    acceptance: AcceptanceName | None = None
    posterior_threshold: Annotated[float, Field(ge=0, le=1)] | None = None
    posterior_alpha: Annotated[float, Field(ge=0, le=1)] | None = None
    lookup_ngram: Annotated[int, Field(ge=0, le=16)] = 3
    tree: str | None = None
    steps: bool = False

    @field_validator("logit_bias")
    @classmethod
    def _check_keys(cls, biases: dict[str, float] | None) -> dict[str, float] | None:
        for key in biases or ():
            if not (key.isascii() and key.isdecimal()):
                raise ValueError(f"{key!r} is no token id: the keys are whole numbers as texts")
        return biases


class TextPart(Body):
    """A part of a message."""

    type: Literal["text"]
    text: str


class FunctionCall(Body):
    """A call that the model made."""

    name: str
    arguments: str


class ToolCall(Body):
    """A tool call in a message of the assistant."""

    id: str
    type: Literal["function"]
    function: FunctionCall


class ChatMessage(Body):
    """A message; the chat template gets it as it is.

    Clients send messages back as they got them, so fields of replies may be there without a value.
    """

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: Annotated[list[ToolCall], Field(min_length=1)] | None = None
    tool_call_id: str | None = None
    refusal: None = None
    annotations: None = None
    audio: None = None
    function_call: None = None


_FunctionName = Annotated[str, Field(pattern="^[a-zA-Z0-9_-]{1,64}$")]


class FunctionTool(Body):
    """A function that the model may call; without parameters it takes no arguments.

    With `strict` each call has arguments of this schema, also where `tool_choice` is auto.
    """

    name: _FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Body):
    """A tool that the model may call."""

    type: Literal["function"]
    function: FunctionTool


class NamedFunction(Body):
    """The name of a function."""

    name: _FunctionName


class NamedTool(Body):
    """The tool that the model has to call."""

    type: Literal["function"]
    function: NamedFunction


class ChatRequest(ReplyFields):
    """Body of /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Annotated[list[Tool], Field(min_length=1, max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class CompletionRequest(ReplyFields):
    """Body of /v1/completions; a prompt is text or token ids, and there may be several."""

    prompt: (
        str
        | Annotated[list[str], Field(min_length=1)]
        | Annotated[list[_TokenId], Field(min_length=1)]
        | Annotated[list[Annotated[list[_TokenId], Field(min_length=1)]], Field(min_length=1)]
    )
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool = False


class TokenizeRequest(Body):
    """Body of /tokenize: a text, or the messages of a conversation."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1)] | None = None
    add_special_tokens: bool = True


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
