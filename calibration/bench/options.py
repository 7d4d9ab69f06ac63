"""What a benchmark compares, and its options: light, since each verb reads its defaults."""

from dataclasses import dataclass
from typing import Literal

from medusa_trt.errors import PromptError
from medusa_trt.runtime.options import AcceptanceName, SamplingOptions
from medusa_trt.tree_configs import MedusaTree

ModeName = Literal["greedy", "heads", "sample", "typical"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mode:
    """A way to answer prompts.

    Attributes:
        name: what the report calls it.
        acceptance: the rule in force.
        drafts: whether it uses the draft tree; plain decoding does not.
        copies: whether it also drafts by prompt lookup.
        baseline: name of plain decoding with the same sampling, which it is compared with; None
            for plain decoding itself.
        is_lossless: whether its tokens must equal the baseline's.
    """

    name: str
    acceptance: AcceptanceName
    drafts: bool = False
    copies: bool = False
    baseline: str | None = None
    is_lossless: bool = False


_GREEDY_PLAIN = Mode(name="greedy plain", acceptance="greedy")
_SAMPLE_PLAIN = Mode(name="sample plain", acceptance="sample")
_MODES: dict[ModeName, tuple[Mode, Mode]] = {
    "greedy": (
        _GREEDY_PLAIN,
        Mode(
            name="greedy Medusa",
            acceptance="greedy",
            drafts=True,
            copies=True,
            baseline=_GREEDY_PLAIN.name,
            is_lossless=True,
        ),
    ),
    "heads": (
        _GREEDY_PLAIN,
        Mode(
            name="heads alone",
            acceptance="greedy",
            drafts=True,
            baseline=_GREEDY_PLAIN.name,
            is_lossless=True,
        ),
    ),
    "sample": (
        _SAMPLE_PLAIN,
        Mode(
            name="sample Medusa",
            acceptance="sample",
            drafts=True,
            copies=True,
            baseline=_SAMPLE_PLAIN.name,
            is_lossless=True,
        ),
    ),
    "typical": (
        _SAMPLE_PLAIN,
        Mode(
            name="typical Medusa",
            acceptance="typical",
            drafts=True,
            copies=True,
            baseline=_SAMPLE_PLAIN.name,
        ),
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """How a benchmark is run.

    Attributes:
        compared: what to measure: Medusa by each acceptance, and greedily without prompt lookup
            ("heads"); plain decoding with the same sampling always comes along.
        max_new_tokens: limit on each reply.
        rounds: how often everything is repeated; a prompt's figures are medians over its rounds.
        temperature: of sample and typical.
        seed: the first prompt's; the others count up from it.
        tree: the draft tree; the bundle's own by default.
    """

    compared: tuple[ModeName, ...] = ("greedy", "heads", "sample", "typical")
    max_new_tokens: int = 128
    rounds: int = 1
    temperature: float = 0.7
    seed: int = 0
    tree: MedusaTree | None = None

    def __post_init__(self) -> None:
        if not self.compared or not set(self.compared) <= set(_MODES):
            raise PromptError(
                f"modes {','.join(self.compared)!r}: choose from {', '.join(_MODES)}, "
                "with commas between them"
            )
        if self.rounds < 1:
            raise PromptError(f"rounds is {self.rounds}: it must be at least 1")
        if self.max_new_tokens < 2:
            raise PromptError(
                f"max_new_tokens is {self.max_new_tokens}: it must be at least 2, "
                "since speed is measured after the first token"
            )
        sampling = SamplingOptions(temperature=self.temperature, seed=self.seed)
        if sampling.temperature == 0 and not set(self.compared) <= {"greedy", "heads"}:
            raise PromptError(
                "temperature is 0, where sample and typical are greedy: "
                "raise it, or measure greedy and heads only"
            )

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The modes to run, each baseline before what is compared with it."""
        pairs = [_MODES[name] for name in _MODES if name in self.compared]
        return tuple(dict.fromkeys(mode for pair in pairs for mode in pair))
