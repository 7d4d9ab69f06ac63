"""How a reply is made: the distribution of its tokens, their drafting and its end."""

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from medusa_trt.errors import PromptError, check_range
from medusa_trt.runtime.processors.base import LogitsProcessor
from medusa_trt.runtime.processors.grammar import Grammar
from medusa_trt.runtime.processors.penalties import CountPenalty, RepetitionPenalty
from medusa_trt.tree_configs import MedusaTree, load_tree
from medusa_trt.types_of_options import check_types, find_invalid_character

_MAX_NGRAM = 16

_LEAST_TEMPERATURE = 1e-5
"""Below it vLLM takes the likeliest token too; far below, the divided logits leave float32."""

_LARGEST_TEMPERATURE = 100_000
"""All tokens are equally likely there; far above, the divided logits leave float32 too."""

POSTERIOR_THRESHOLD, POSTERIOR_ALPHA = 0.09, 0.3
"""ε and δ as in the Medusa paper's code, where calibrate threshold put none into the bundle."""

AcceptanceName = Literal["greedy", "typical", "sample"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingOptions:
    """The distribution that tokens are drawn from, in the order of transformers' warpers.

    Attributes:
        temperature: divides the logits; 0 always takes the likeliest token, and so does less than
            1e-5.
        top_k: keep this many of the likeliest tokens, and those as likely as the last of them; 0
            keeps all tokens.
        top_p: of these, keep the fewest tokens whose probabilities together reach this value.
        min_p: of these, keep the tokens that are at least this many times as likely as the
            likeliest.
        seed: makes the drawing repeatable (default: a new seed each time).
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None

    def __post_init__(self) -> None:
        check_types(self, PromptError)
        check_range(self, PromptError, "temperature", 0, _LARGEST_TEMPERATURE)
        check_range(self, PromptError, "top_k", 0)
        check_range(self, PromptError, "min_p", 0, 1)
        if not 0 < self.top_p <= 1:
            raise PromptError(f"top_p is {self.top_p}: it must be above 0 and at most 1")
        if self.seed is not None and not 0 <= self.seed < 2**64:
            raise PromptError(f"seed is {self.seed}: it must be at least 0 and below 2^64")
        if 0 < self.temperature < _LEAST_TEMPERATURE:
            object.__setattr__(self, "temperature", 0.0)


GREEDY = SamplingOptions()


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationOptions:
    """How one reply is made.

    Attributes:
        max_new_tokens: most tokens of the reply, as far as the KV cache has place for them; in
            Python None has no other limit.
        ignore_eos: go on after an end-of-sequence token, for benchmarks.
        tree: the draft tree, on the command line its name or file; plain is the tree without drafts
            (default: the bundle's tree).
        lookup_ngram: draft by prompt lookup: where this many of the last tokens occurred before,
            draft what followed them there instead of the heads' tokens, with as many nodes as the
            tree has; 0 turns it off. It changes no token, except with typical acceptance.
        sampling: the distribution that tokens are drawn from (default: the likeliest token).
        acceptance: rule by which drafted tokens are accepted. greedy and sample give the tokens of
            plain decoding; typical, the rule of the Medusa paper, accepts more and changes the
            distribution, except at temperature 0 (default: greedy at temperature 0, sample above).
        posterior_threshold: ε of typical acceptance (default: what calibrate threshold put into the
            bundle, or else 0.09).
        posterior_alpha: δ of typical acceptance (default: what calibrate threshold put into the
            bundle, or else 0.3).
        stop: text that ends the reply and is not part of it; the flag may be repeated. A special
            token in it, such as <|im_start|>, is meant as that token.
        stop_ids: token id that ends the reply and is no part of its text; the flag may be repeated
            (default: none).
        repetition_penalty: makes the tokens of the prompt and of the reply less likely: divides
            positive logits and multiplies negative ones; 1 changes nothing.
        presence_penalty: subtracted from the logit of every token that occurs in the reply.
        frequency_penalty: subtracted from a token's logit for each time it occurs in the reply.
        processors: functions that change the logits before a token is chosen, in this order, after
            the penalties.
        grammar: what the reply must match; no other token is chosen (default: none).
        logprobs: report the log-probability of each token and of this many alternatives, as the
            model itself gives them: before processors, temperature and filters (default: none).
        prompt_logprobs: report them also of the prompt's tokens, all of which are then read again.
        echo: begin the text of the reply with the prompt.
    """

    max_new_tokens: int | None = 1024
    ignore_eos: bool = False
    tree: Annotated[MedusaTree | None, load_tree] = None
    lookup_ngram: int = 3
    sampling: SamplingOptions = GREEDY
    acceptance: AcceptanceName | None = None
    posterior_threshold: float | None = None
    posterior_alpha: float | None = None
    stop: Annotated[tuple[str, ...], "--stop TEXT"] = ()
    stop_ids: Annotated[tuple[int, ...], "--stop-id N"] = ()
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    processors: tuple[LogitsProcessor, ...] = ()
    grammar: Grammar | None = None
    logprobs: int | None = None
    prompt_logprobs: bool = False
    echo: bool = False

    def __post_init__(self) -> None:
        check_types(self, PromptError)
        check_range(self, PromptError, "max_new_tokens", 1)
        check_range(self, PromptError, "lookup_ngram", 0, _MAX_NGRAM)
        check_range(self, PromptError, "posterior_threshold posterior_alpha", 0, 1)
        check_range(self, PromptError, "logprobs", 0, 20)
        check_range(self, PromptError, "repetition_penalty", 0.01, 100)
        check_range(self, PromptError, "presence_penalty frequency_penalty", -2, 2)
        if self.acceptance == "greedy" and self.sampling.temperature > 0:
            raise PromptError(
                f"acceptance greedy at temperature {self.sampling.temperature}: "
                "use temperature 0, or acceptance sample or typical"
            )
        if self.prompt_logprobs and self.logprobs is None:
            raise PromptError("prompt_logprobs needs logprobs: say how many alternatives to report")
        for text in self.stop:
            if not text or find_invalid_character(text):
                reason = "it is no valid Unicode" if text else "it would end every reply"
                raise PromptError(f"stop has {text!r}: {reason}, leave it out")
        if self.stop_ids and min(self.stop_ids) < 0:
            raise PromptError(f"stop_ids has {min(self.stop_ids)}: token ids are 0 or more")
        changes_logits = bool(self.penalties or self.processors or self.grammar)
        if self.rule == "typical" and (changes_logits or self.logprobs is not None):
            raise PromptError(
                "acceptance typical takes no penalties, grammar or logits processors and reports "
                "no logprobs: use acceptance sample"
            )

    @property
    def penalties(self) -> tuple[LogitsProcessor, ...]:
        """The processors of the penalties that change something."""
        penalties: list[LogitsProcessor] = []
        if self.repetition_penalty != 1:
            penalties.append(RepetitionPenalty(penalty=self.repetition_penalty))
        presence, frequency = self.presence_penalty, self.frequency_penalty
        if presence or frequency:
            penalties.append(CountPenalty(presence=presence, frequency=frequency))
        return tuple(penalties)

    @property
    def rule(self) -> AcceptanceName:
        """The acceptance rule in force: greedy at temperature 0, whatever `acceptance` is."""
        if self.sampling.temperature == 0:
            return "greedy"
        return self.acceptance or "sample"


def add_to_seed(options: GenerationOptions, index: int) -> GenerationOptions:
    """Makes the options of reply `index` of several, which are drawn with different seeds."""
    seed = options.sampling.seed
    if seed is None or index == 0:
        return options
    sampling = replace(options.sampling, seed=(seed + index) % 2**64)
    return replace(options, sampling=sampling)
