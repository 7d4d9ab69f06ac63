"""What one reply is asked to be."""

import math
from dataclasses import dataclass
from typing import Literal

from medusa_trt.errors import PromptError
from medusa_trt.runtime.processors import LogitsProcessor
from medusa_trt.tree_configs import MedusaTree

_MAX_NGRAM = 16

AcceptanceName = Literal["greedy", "typical", "sample"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingOptions:
    """The distribution that tokens are drawn from, in the order of transformers' warpers.

    Attributes:
        temperature: divides the logits; 0 means greedy.
        top_k: keep the k most likely tokens; 0 keeps all. Ties with the last one are kept.
        top_p: of these, keep the fewest most likely whose probabilities reach `top_p`.
        min_p: of these, keep tokens at least `min_p` times as likely as the most likely.
        seed: makes sampling repeatable; None draws a fresh one.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None

    def __post_init__(self) -> None:
        checks = (
            ("temperature", self.temperature, 0, math.inf, "0 or more"),
            ("top_k", self.top_k, 0, math.inf, "0 (all) or more"),
            ("top_p", self.top_p, 1e-9, 1, "above 0 and at most 1"),
            ("min_p", self.min_p, 0, 1, "between 0 and 1"),
        )
        for name, value, low, high, wanted in checks:
            if not (low <= value <= high) or math.isinf(value):
                raise PromptError(f"{name} is {value}: it must be {wanted}")
        if self.seed is not None and not 0 <= self.seed < 2**64:
            raise PromptError(f"seed is {self.seed}: it must be at least 0 and below 2^64")


GREEDY = SamplingOptions()


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationOptions:
    """How one reply is generated.

    Attributes:
        max_new_tokens: limit on the reply, counted in tokens; None means until the model ends
            it or the cache is full.
        ignore_eos: go on after an end-of-sequence token, for benchmarks.
        tree: the draft tree; the bundle's own by default, the empty tree for plain decoding.
        lookup_ngram: where the last so many tokens occurred before in the prompt or the reply, a
            step drafts what followed them instead of the heads' candidates, with as many nodes as
            the tree; 0 for never. It changes no token, except by typical acceptance.
        sampling: the distribution; greedy by default.
        acceptance: "greedy", "sample" or "typical"; by default "greedy" at temperature 0 and
            "sample" above, both of which equal plain decoding token for token. "typical" is the
            paper's rule, which does not keep the distribution; at temperature 0 it is greedy.
        posterior_threshold: ε of typical acceptance.
        posterior_alpha: δ of typical acceptance.
        stop: texts that end the reply; they are not part of it.
        processors: change the logits before a token is chosen, in this order.
        logprobs: report each token's log-probability and this many alternatives; None reports
            nothing. They are the model's own, before processors, temperature and filters.
        echo: the reply's text begins with the prompt's.
    """

    max_new_tokens: int | None = None
    ignore_eos: bool = False
    tree: MedusaTree | None = None
    lookup_ngram: int = 3
    sampling: SamplingOptions = GREEDY
    acceptance: AcceptanceName | None = None
    posterior_threshold: float = 0.09
    posterior_alpha: float = 0.3
    stop: tuple[str, ...] = ()
    processors: tuple[LogitsProcessor, ...] = ()
    logprobs: int | None = None
    echo: bool = False

    def __post_init__(self) -> None:
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise PromptError(f"max_new_tokens is {self.max_new_tokens}: it must be at least 1")
        if not 0 <= self.lookup_ngram <= _MAX_NGRAM:
            raise PromptError(
                f"lookup_ngram is {self.lookup_ngram}: it must be 0 (never) to {_MAX_NGRAM}"
            )
        for name, value in (
            ("posterior_threshold", self.posterior_threshold),
            ("posterior_alpha", self.posterior_alpha),
        ):
            if not 0 <= value <= 1:
                raise PromptError(f"{name} is {value}: it must be between 0 and 1")
        if self.acceptance == "greedy" and self.sampling.temperature > 0:
            raise PromptError(
                f"greedy acceptance at temperature {self.sampling.temperature}: "
                "use temperature 0, or acceptance sample or typical"
            )
        if not all(self.stop):
            raise PromptError("an empty stop text would end every reply: leave it out")
        if self.logprobs is not None and not 0 <= self.logprobs <= 20:
            raise PromptError(f"logprobs is {self.logprobs}: it must be between 0 and 20")
        if self.rule == "typical" and (self.processors or self.logprobs is not None):
            raise PromptError(
                "typical acceptance takes no logits processors and reports no logprobs: "
                "use acceptance sample"
            )

    @property
    def rule(self) -> AcceptanceName:
        """The acceptance in force: temperature 0 reverts to greedy."""
        if self.sampling.temperature == 0:
            return "greedy"
        return self.acceptance or "sample"
