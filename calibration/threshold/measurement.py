"""Generates replies by typical acceptance at many thresholds, and scores them under the model.

Only the heads draft. Prompt lookup would add other tokens, which hide the effect of ε.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import product

import msgspec
import numpy as np

from medusa_trt.calibration.options import ReplySettings, ThresholdOptions
from medusa_trt.calibration.prompts import BenchPrompt
from medusa_trt.calibration.records import RecordLog
from medusa_trt.calibration.replies import (
    check_prompts_fit,
    encode_first_turn,
    estimate_reply_s,
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


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How tokens are accepted: typical acceptance with ε and δ, or without them the sampler."""

    temperature: float
    posterior_threshold: float | None = None
    posterior_alpha: float | None = None


class ThresholdRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One reply.

    Attributes:
        settings: how the reply was generated, apart from their temperature, which is not used.
        rule: how its tokens were accepted.
        tree: paths of the draft tree.
        prompt_id: id of the prompt.
        token_ids: the reply.
        num_steps: verify steps after the first token.
        sum_logprob: log-likelihood of the reply under the model at temperature 1, in nats.
        num_agreeing: number of tokens that the lossless sampler draws too, after the same tokens.
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
    """Lists the rules to compare: at each temperature the sampler, then every threshold."""
    return [
        Rule(temperature=temperature)
        if threshold is None
        else Rule(
            temperature=temperature,
            posterior_threshold=threshold,
            posterior_alpha=options.choose_alpha(threshold),
        )
        for temperature, threshold in product(options.temperatures, (None, *options.thresholds))
    ]


def check_drafts(tree: MedusaTree) -> None:
    """Refuses a tree without drafts.

    Raises:
        TreeError: the tree is the root alone.
    """
    if tree.num_nodes == 1:
        raise TreeError(
            f"tree {tree.name} drafts nothing, so there is nothing to accept: give the bundle a "
            "tree, for instance with medusa-trt calibrate tree"
        )


def list_missing_replies(
    rules: Sequence[Rule],
    prompts: Sequence[BenchPrompt],
    settings: ReplySettings,
    tree: tuple[tuple[int, ...], ...],
    log: RecordLog[ThresholdRecord],
) -> list[tuple[int, Rule]]:
    """Lists what the log lacks: the index of a prompt and a rule for each reply."""
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
    """Generates and scores the missing replies, and appends them to the log.

    Raises:
        KeyboardInterrupt: on Ctrl-C; finished replies are kept.
        PromptError: a prompt is too long. No reply is generated then.
    """
    tree = session.bundle.tree
    check_prompts_fit(session, prompts, settings.max_new_tokens)
    for index, rule in missing:
        prompt = prompts[index]
        prompt_ids = encode_first_turn(session, prompt)
        sampling = msgspec.structs.replace(settings, temperature=rule.temperature).sampling(index)
        options = _generation_options(rule, sampling, settings.max_new_tokens)
        reply = generate_whole_reply(session, prompt_ids, options)
        sum_logprob, num_agreeing = score_reply(session, prompt_ids, reply.token_ids, sampling)
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


def score_reply(
    session: MedusaSession,
    prompt_ids: Sequence[int],
    token_ids: Sequence[int],
    sampling: SamplingOptions,
) -> tuple[float, int]:
    """Scores a reply under the model.

    Returns:
        Log-likelihood of the reply at temperature 1, in nats, and the number of its tokens that
        the lossless sampler draws with the same seed after the same tokens.
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
    """Estimates the seconds that a reply of full length and its score take."""
    score = partial(score_reply, session, sampling=SamplingOptions(temperature=1.0, seed=0))
    options = GenerationOptions(lookup_ngram=0)
    return estimate_reply_s(session, prompt, settings.max_new_tokens, score, options)


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
