"""What chat and completions share: options from fields, tokens as text, usage, reasons."""

from collections.abc import Iterable, Sequence
from typing import Any

from medusa_trt.errors import MedusaError, TreeError
from medusa_trt.runtime.decoding.tracing import VerifiedStep
from medusa_trt.runtime.options import GenerationOptions, SamplingOptions
from medusa_trt.runtime.processors.grammar import Grammar
from medusa_trt.runtime.processors.penalties import LogitBias
from medusa_trt.runtime.reply import FinishReason, Generation
from medusa_trt.runtime.session import MedusaSession
from medusa_trt.runtime.text.codec import TextCodec
from medusa_trt.serving.errors import ApiError, error_from_medusa
from medusa_trt.serving.metrics import count_accepted
from medusa_trt.serving.requests.schemas import JsonObjectFormat, JsonSchemaFormat, ReplyFields
from medusa_trt.tree_configs import MedusaTree, load_tree

LEAST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON cannot hold, as in OpenAI's API."""

_MAX_TREE_NODES = 64
"""Most nodes of a tree that a client names; the largest published trees have as many."""

_FINISH: dict[FinishReason, str] = {"stop": "stop", "length": "length", "cache_full": "length"}


def options_from_fields(
    body: ReplyFields,
    session: MedusaSession,
    *,
    max_new_tokens: int | None,
    logprobs: int | None,
    prompt_logprobs: bool = False,
) -> GenerationOptions:
    """Makes the options of a reply.

    Raises:
        ApiError: fields contradict each other, or one cannot be used.
    """
    if body.stream_options is not None and not body.stream:
        raise _refuse("stream_options", "it needs stream: true")
    if body.counts_always and not body.shows_usage:
        raise _refuse("stream_options.continuous_usage_stats", "it needs include_usage: true")
    if body.steps and not body.stream:
        raise _refuse("steps", "it needs stream: true")
    stop = body.stop or []
    stop_ids = tuple(body.stop_token_ids or ())
    biases = {int(token): bias for token, bias in (body.logit_bias or {}).items()}
    vocab_size = session.bundle.manifest.model.vocab_size
    for name, token_ids in (("logit_bias", biases), ("stop_token_ids", stop_ids)):
        if token_ids and max(token_ids) >= vocab_size:
            raise _refuse(name, f"token {max(token_ids)} is beyond the last, {vocab_size - 1}")
    try:
        return GenerationOptions(
            max_new_tokens=max_new_tokens,
            ignore_eos=body.ignore_eos,
            tree=_load_tree(body.tree),
            lookup_ngram=body.lookup_ngram,
            sampling=SamplingOptions(
                temperature=body.temperature,
                top_k=body.top_k,
                top_p=body.top_p,
                min_p=body.min_p,
                seed=None if body.seed is None else body.seed % 2**64,
            ),
            acceptance=body.acceptance,
            posterior_threshold=body.posterior_threshold,
            posterior_alpha=body.posterior_alpha,
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
            stop_ids=stop_ids,
            repetition_penalty=body.repetition_penalty,
            presence_penalty=body.presence_penalty,
            frequency_penalty=body.frequency_penalty,
            processors=(LogitBias(biases=biases),) if biases else (),
            grammar=_make_grammar(body),
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
        )
    except MedusaError as error:
        raise error_from_medusa(error, body) from error


def _load_tree(name: str | None) -> MedusaTree | None:
    if name is None:
        return None
    if name.endswith(".json"):  # This would read a file of the server.
        raise _refuse("tree", f"{name!r} is a file: give the name of a tree, such as chain-2")
    try:
        return load_tree(name, max_nodes=_MAX_TREE_NODES)
    except TreeError as error:
        raise _refuse("tree", str(error).replace("a path to a .json file, ", "")) from error


def _make_grammar(body: ReplyFields) -> Grammar | None:
    grammars = {}
    if body.regex is not None:
        grammars["regex"] = Grammar.from_regex(body.regex)
    if body.grammar is not None:
        grammars["grammar"] = Grammar.from_lark(body.grammar)
    if isinstance(body.response_format, JsonObjectFormat):
        grammars["response_format"] = Grammar.from_json_schema({"type": "object"})
    if isinstance(body.response_format, JsonSchemaFormat):
        schema = body.response_format.json_schema.schema_
        grammars["response_format"] = Grammar.from_json_schema(schema)
    if len(grammars) > 1:
        raise _refuse(next(iter(grammars)), f"{' and '.join(grammars)} exclude each other")
    return next(iter(grammars.values()), None)


def _refuse(param: str, reason: str) -> ApiError:
    return ApiError(400, f"{param}: {reason}", param=param, code="invalid_value")


def describe_finish(generation: Generation | None) -> str | None:
    """The reason by which a reply ended, in OpenAI's words; None while it grows."""
    return None if generation is None else _FINISH[generation.finish_reason]


def describe_step(step: VerifiedStep | None, text: TextCodec) -> dict[str, Any]:
    """Describes a verified tree as further fields of a choice; none without a step."""
    if step is None:
        return {}
    accepted = frozenset(step.accepted)
    nodes: list[dict[str, Any]] = []
    for node, (token, parent) in enumerate(zip(step.tokens, step.parents, strict=True)):
        nodes.append({"token": decode_token(token, text)})
        if node:
            source = "lookup" if step.is_copied[node] else "heads"
            nodes[-1] |= {"parent": parent, "source": source, "accepted": node in accepted}
    return {"step": {"nodes": nodes, "bonus_token": decode_token(step.bonus_token, text)}}


def decode_token(token_id: int, text: TextCodec) -> str:
    """The text of one token; what is a part of a character becomes U+FFFD."""
    return text.token_bytes(token_id).decode("utf-8", "replace")


def describe_chunk_usage(
    body: ReplyFields, prompt_tokens: int, num_tokens: Iterable[int]
) -> dict[str, Any]:
    """Describes what a chunk of a stream says of its tokens, besides the last chunk.

    Args:
        body: says whether this is nothing, null or the counts so far.
        prompt_tokens: of all prompts.
        num_tokens: of each reply so far.
    """
    if not body.counts_always:
        return {"usage": None} if body.shows_usage else {}
    new_tokens = sum(num_tokens)
    counts = {"prompt_tokens": prompt_tokens, "completion_tokens": new_tokens}
    return {"usage": counts | {"total_tokens": prompt_tokens + new_tokens}}


def describe_usage(generations: Sequence[Generation], num_choices: int) -> dict[str, Any]:
    """Counts the tokens of all replies; a prompt counts once for its `num_choices` replies."""
    stats = [generation.stats for generation in generations]
    prompt_tokens = sum(reply.prompt_tokens for reply in stats[::num_choices])
    new_tokens = sum(reply.new_tokens for reply in stats)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": new_tokens,
        "total_tokens": prompt_tokens + new_tokens,
        "prompt_tokens_details": {
            "cached_tokens": sum(reply.cached_tokens for reply in stats[::num_choices])
        },
        "completion_tokens_details": {
            "accepted_prediction_tokens": sum(map(count_accepted, stats)),
        },
    }
