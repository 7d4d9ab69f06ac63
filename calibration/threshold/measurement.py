"""Replies by typical acceptance at many thresholds, and what the model itself thinks of them.

The heads alone draft: prompt lookup would lengthen steps too, and hide what ε does to their drafts.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product

import msgspec
import numpy as np

from medusa_trt.calibration.calibrate_options import ReplySettings, ThresholdOptions
from medusa_trt.calibration.prompts import BenchPrompt
from medusa_trt.calibration.records import RecordLog
from medusa_trt.calibration.replies import (
    check_room,
    encode_first_turn,
    generate_whole_reply,
    run_over_text,
)
from medusa_trt.errors import TreeError
from medusa_trt.runtime.options import GenerationOptions, SamplingOptions
from medusa_trt.runtime.sampling import token_from_logits, uniforms_from_seed
from medusa_trt.runtime.session import MedusaSession
from medusa_trt.tree_configs import MedusaTree

THRESHOLD_FILE = "threshold_heads.jsonl"
"""The name says "heads", since a file threshold.jsonl held replies drafted by prompt lookup too."""

_PROBE_TOKENS = 16


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How tokens are accepted: typical at ε and δ, or without them the lossless sampler."""

    temperature: float
    posterior_threshold: float | None = None
    posterior_alpha: float | None = None


class ThresholdRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One reply.

    Attributes:
        settings: how it was asked for; their temperature is not used.
        rule: how its tokens were accepted.
        tree: the draft tree.
        prompt_id: the prompt's.
        token_ids: the reply.
        num_steps: verify steps after the first token.
        sum_logprob: the reply's log-likelihood in nats under the model itself, at temperature 1.
        num_agreeing: tokens that are the lossless sampler's, given the tokens before them.
    """

    settings: ReplySettings
    rule: Rule
    tree: tuple[tuple[int, ...], ...]
    prompt_id: str
    token_ids: list[int]
    num_steps: int
    sum_logprob: float
    num_agreeing: int


def rules_from_options(options: ThresholdOptions) -> list[Rule]:
    """The sampler and then every threshold, at each temperature."""
    return [
        Rule(temperature=temperature)
        if threshold is None
        else Rule(
            temperature=temperature,
            posterior_threshold=threshold,
            posterior_alpha=options.alpha_for(threshold),
        )
        for temperature, threshold in product(options.temperatures, (None, *options.thresholds))
    ]


def check_drafts(tree: MedusaTree) -> None:
    """Refuses a tree that drafts nothing.

    Raises:
        TreeError: it does not.
    """
    if tree.num_nodes == 1:
        raise TreeError(
            f"tree {tree.name} drafts nothing, so there is nothing to accept: give the bundle a "
            "tree, for instance with medusa-trt calibrate tree"
        )


def missing_replies(
    rules: Sequence[Rule],
    prompts: Sequence[BenchPrompt],
    settings: ReplySettings,
    tree: tuple[tuple[int, ...], ...],
    log: RecordLog[ThresholdRecord],
) -> list[tuple[int, Rule]]:
    """Prompts (by index) and rules that the log has no reply to, prompt by prompt."""
    done = {(r.prompt_id, r.rule) for r in log if r.settings == settings and r.tree == tree}
    return [
        (index, rule)
        for index, prompt in enumerate(prompts)
        for rule in rules
        if (prompt.id, rule) not in done
    ]


def record_replies(
    session: MedusaSession,
    prompts: Sequence[BenchPrompt],
    settings: ReplySettings,
    missing: Sequence[tuple[int, Rule]],
    log: RecordLog[ThresholdRecord],
    advance: Callable[[], None],
) -> None:
    """Generates and scores the missing replies.

    Raises:
        KeyboardInterrupt: on Ctrl-C; whole replies are kept.
        PromptError: a prompt does not fit; before the first reply.
    """
    tree = session.bundle.tree
    check_room(session, prompts, settings.max_new_tokens)
    for index, rule in missing:
        prompt = prompts[index]
        prompt_ids = encode_first_turn(session, prompt)
        sampling = msgspec.structs.replace(settings, temperature=rule.temperature).sampling(index)
        options = _generation_options(rule, sampling, settings.max_new_tokens)
        reply = generate_whole_reply(session, prompt_ids, options)
        sum_logprob, num_agreeing = score(session, prompt_ids, reply.token_ids, sampling)
        log.append(
            ThresholdRecord(
                settings=settings,
                rule=rule,
                tree=tree.medusa_choices,
                prompt_id=prompt.id,
                token_ids=reply.token_ids,
                num_steps=len(reply.stats.accept_lengths),
                sum_logprob=sum_logprob,
                num_agreeing=num_agreeing,
            )
        )
        advance()


def score(
    session: MedusaSession,
    prompt_ids: Sequence[int],
    token_ids: Sequence[int],
    sampling: SamplingOptions,
) -> tuple[float, int]:
    """What the model thinks of a reply.

    Returns:
        Its log-likelihood in nats at temperature 1, and how many of its tokens the lossless
        sampler draws with this seed after the tokens before them.
    """
    text = [*prompt_ids, *token_ids]
    uniforms = uniforms_from_seed(sampling.seed, len(text))
    total, num_agreeing = 0.0, 0
    for chunk in run_over_text(session, text[:-1], len(prompt_ids) - 1, logits=True):
        assert chunk.logits is not None
        for position, row in enumerate(chunk.logits, start=chunk.first + 1):
            token = text[position]
            shifted = row.astype(np.float64) - float(row.max())
            total += float(shifted[token] - np.log(np.exp(shifted).sum()))
            num_agreeing += token == token_from_logits(row, sampling, float(uniforms[position]))
    return total, num_agreeing


def estimate_s(session: MedusaSession, prompt: BenchPrompt, settings: ReplySettings) -> float:
    """Seconds that one reply of full length takes with its score, from a short one."""
    prompt_ids = encode_first_turn(session, prompt)
    num_tokens = min(_PROBE_TOKENS, settings.max_new_tokens)
    options = GenerationOptions(max_new_tokens=num_tokens, ignore_eos=True, lookup_ngram=0)
    generate_whole_reply(session, prompt_ids, options)
    start = time.perf_counter()
    reply = generate_whole_reply(session, prompt_ids, options)
    score(session, prompt_ids, reply.token_ids, SamplingOptions(temperature=1.0, seed=0))
    return (time.perf_counter() - start) / num_tokens * settings.max_new_tokens


def _generation_options(
    rule: Rule, sampling: SamplingOptions, max_new_tokens: int
) -> GenerationOptions:
    options = GenerationOptions(
        max_new_tokens=max_new_tokens, sampling=sampling, acceptance="sample", lookup_ngram=0
    )
    if rule.posterior_threshold is None or rule.posterior_alpha is None:
        return options
    return replace(
        options,
        acceptance="typical",
        posterior_threshold=rule.posterior_threshold,
        posterior_alpha=rule.posterior_alpha,
    )
