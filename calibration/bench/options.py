"""What a benchmark compares, and its options. The command line reads this module: it is light."""

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from medusa_trt.errors import PromptError, check_range
from medusa_trt.runtime.options import (
    AcceptanceName,
    SamplingOptions,
)
from medusa_trt.tree_configs import MedusaTree, load_tree
from medusa_trt.types_of_options import check_types

MAX_CONCURRENCY = 256

ModeName = Literal["greedy", "heads", "sample", "typical"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mode:
    """A way to reply to prompts.

    Attributes:
        name: name of the mode in the report.
        acceptance: the acceptance rule.
        drafts: whether the mode uses the draft tree; plain decoding does not.
        copies: whether the mode also drafts by prompt lookup.
        baseline: name of the mode of plain decoding with the same sampling, with which this mode is
            compared; None for plain decoding itself.
        is_lossless: whether the mode's tokens must equal the baseline's.
        tree: the draft tree of this mode; None for the benchmark's.
    """

    name: str
    acceptance: AcceptanceName
    drafts: bool = False
    copies: bool = False
    baseline: str | None = None
    is_lossless: bool = False
    tree: MedusaTree | None = None


_GREEDY_PLAIN = Mode(name="greedy plain", acceptance="greedy")
_SAMPLE_PLAIN = Mode(name="sample plain", acceptance="sample")


def _medusa(plain: Mode, name: str) -> Mode:
    return replace(
        plain, name=name, drafts=True, copies=True, baseline=plain.name, is_lossless=True
    )


_GREEDY, _SAMPLE = _medusa(_GREEDY_PLAIN, "greedy Medusa"), _medusa(_SAMPLE_PLAIN, "sample Medusa")
_TYPICAL = replace(_SAMPLE, name="typical Medusa", acceptance="typical", is_lossless=False)
_MODES: dict[ModeName, tuple[Mode, Mode]] = {
    "greedy": (_GREEDY_PLAIN, _GREEDY),
    "heads": (_GREEDY_PLAIN, replace(_GREEDY, name="heads alone", copies=False)),
    "sample": (_SAMPLE_PLAIN, _SAMPLE),
    "typical": (_SAMPLE_PLAIN, _TYPICAL),
}
"""Plain decoding and what is compared with it, by the name of the latter on the command line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """How a benchmark is run.

    Attributes:
        compared: what to compare with plain decoding: Medusa with greedy, sample or typical
            acceptance; heads is greedy acceptance without prompt lookup.
        max_new_tokens: most tokens of each reply.
        rounds: repeat everything this often; the results are medians over the rounds.
        temperature: temperature of sample and typical.
        seed: seed of the first prompt's reply in sample and typical; each further prompt has the
            next number.
        posterior_threshold: ε of typical acceptance (default: what calibrate threshold put into the
            bundle, or else 0.09).
        posterior_alpha: δ of typical acceptance (default: what calibrate threshold put into the
            bundle, or else 0.3).
        tree: the draft tree, on the command line its name or file (default: grown at each step, or
            the bundle's tree where that cannot be).
        concurrency: instead of the modes, compare Medusa with plain decoding while this many
            requests run at the same time, the next one starting when one ends, as 1,2,4,8
            (default: one request after the other).
        arrivals: the same with requests that arrive at random, this many a second on average; at
            most the largest concurrency run together (default: none).
    """

    compared: Annotated[tuple[ModeName, ...], "--modes"] = ("greedy", "heads", "sample", "typical")
    max_new_tokens: int = 128
    rounds: int = 1
    temperature: float = 0.7
    seed: int = 0
    posterior_threshold: float | None = None
    posterior_alpha: float | None = None
    tree: Annotated[MedusaTree | None, load_tree] = None
    concurrency: Annotated[tuple[int, ...], "--concurrency"] = ()
    arrivals: Annotated[tuple[float, ...], "--arrivals"] = ()

    def __post_init__(self) -> None:
        check_types(self, PromptError)
        if not self.compared:
            raise PromptError(f"no mode is compared: choose from {', '.join(_MODES)}")
        check_range(self, PromptError, "rounds", 1)
        check_range(self, PromptError, "posterior_threshold posterior_alpha", 0, 1)
        for number in self.concurrency:
            if not 1 <= number <= MAX_CONCURRENCY:
                raise PromptError(
                    f"concurrency is {number}: it must be at least 1 and at most {MAX_CONCURRENCY}"
                )
        for rate in self.arrivals:
            if not rate > 0:
                raise PromptError(f"arrivals is {rate}: it must be above 0, in requests per second")
        check_range(self, PromptError, "max_new_tokens", 2)  # speed counts from the first token on
        sampling = SamplingOptions(temperature=self.temperature, seed=self.seed)
        if sampling.temperature == 0 and not set(self.compared) <= {"greedy", "heads"}:
            raise PromptError(
                "temperature is 0, where sample and typical are greedy: "
                "raise it, or measure greedy and heads only"
            )

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The modes to run; a baseline comes before the modes that are compared with it."""
        pairs = [_MODES[name] for name in _MODES if name in self.compared]
        return tuple(dict.fromkeys(mode for pair in pairs for mode in pair))
