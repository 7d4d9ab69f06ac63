"""Options of the calibrations: light, since the command line reads its defaults here."""

import math
from dataclasses import dataclass

import msgspec

from medusa_trt.errors import CalibrationError
from medusa_trt.runtime.options import SamplingOptions

DEFAULT_MAX_NEW_TOKENS = 128
DEFAULT_MAX_KL = 0.02


class ReplySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How replies are asked for; replies to other settings are not mixed with these.

    Attributes:
        prompts: where the prompts come from.
        prompts_sha256: of the prompts themselves.
        max_new_tokens: limit on each reply.
        temperature: 0 for greedy replies.
        seed: the first prompt's; the others count up from it.
    """

    prompts: str
    prompts_sha256: str
    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS
    temperature: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 2:
            raise CalibrationError(
                f"max_new_tokens is {self.max_new_tokens}: it must be at least 2, since the heads "
                "draft after the first token"
            )
        self.sampling(0)

    def sampling(self, index: int) -> SamplingOptions:
        """The distribution of the reply to prompt `index`."""
        return SamplingOptions(temperature=self.temperature, seed=(self.seed + index) % 2**64)


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyOptions:
    """What step times are measured for.

    Attributes:
        sizes: numbers of nodes; 1 (plain decoding) is always among them.
        contexts: tokens in the cache before the measured steps.
        rounds: how often every size is measured at every context.
        batch_size: sequences stepped together.
        num_tokens: tokens generated for one sample, at least 2.
    """

    sizes: tuple[int, ...] = (
        *range(1, 9),
        *(10, 12, 13, 14, 16, 18, 20, 24, 28, 32, 40, 48, 56, 64),
    )
    contexts: tuple[int, ...] = (16, 256, 1024)
    rounds: int = 8
    batch_size: int = 1
    num_tokens: int = 12

    def __post_init__(self) -> None:
        for name, values in (("size", self.sizes), ("context", self.contexts)):
            if not values or min(values) < 1:
                raise CalibrationError(f"{name}s are {list(values)}: give numbers of at least 1")
        checks = (("rounds", self.rounds, 1), ("batch_size", self.batch_size, 1))
        for name, value, least in (*checks, ("num_tokens", self.num_tokens, 2)):
            if value < least:
                raise CalibrationError(f"{name} is {value}: it must be at least {least}")
        object.__setattr__(self, "sizes", tuple(sorted({1, *self.sizes})))
        object.__setattr__(self, "contexts", tuple(sorted(set(self.contexts))))


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeOptions:
    """What the best tree is searched for.

    Attributes:
        context: tokens in the cache; None for the mean over the recorded replies.
        batch_size: sequences stepped together.
        min_speedup: what a tree must be predicted to reach, else plain decoding is recommended.
        max_nodes: most nodes of a tree.
    """

    context: int | None = None
    batch_size: int = 1
    min_speedup: float = 1.02
    max_nodes: int = 64

    def __post_init__(self) -> None:
        if self.context is not None and self.context < 1:
            raise CalibrationError(f"context is {self.context}: it must be at least 1")
        if self.batch_size < 1:
            raise CalibrationError(f"batch_size is {self.batch_size}: it must be at least 1")
        if not self.min_speedup >= 1 or math.isinf(self.min_speedup):
            raise CalibrationError(f"min_speedup is {self.min_speedup}: it must be at least 1")
        if self.max_nodes < 2:
            raise CalibrationError(f"max_nodes is {self.max_nodes}: it must be at least 2")


@dataclass(frozen=True, slots=True, kw_only=True)
class ThresholdOptions:
    """Which thresholds of typical acceptance are compared.

    Attributes:
        thresholds: values of ε.
        alpha: δ; None for the paper's sqrt(ε).
        temperatures: of all replies.
        quality_loss: log-likelihood in nats a token that typical acceptance may lose against the
            sampler, and still be recommended.
        diversity_loss: the same for distinct-2.
    """

    thresholds: tuple[float, ...] = (0.01, 0.03, 0.06, 0.09, 0.15, 0.25)
    alpha: float | None = None
    temperatures: tuple[float, ...] = (0.5, 0.7, 1.0)
    quality_loss: float = 0.05
    diversity_loss: float = 0.05

    def __post_init__(self) -> None:
        for name, values, most in (
            ("threshold", self.thresholds, 1.0),
            ("temperature", self.temperatures, math.inf),
        ):
            if not values or not all(
                0 < value <= most and math.isfinite(value) for value in values
            ):
                raise CalibrationError(
                    f"{name}s are {list(values)}: give numbers above 0"
                    + (f" and at most {most:g}" if math.isfinite(most) else "")
                )
        if self.alpha is not None and not 0 <= self.alpha <= 1:
            raise CalibrationError(f"alpha is {self.alpha}: it must be between 0 and 1")
        for name, loss in (("quality", self.quality_loss), ("diversity", self.diversity_loss)):
            if not loss >= 0:
                raise CalibrationError(f"{name}_loss is {loss}: it must be 0 or more")

    def alpha_for(self, threshold: float) -> float:
        """δ at this ε."""
        return math.sqrt(threshold) if self.alpha is None else self.alpha


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationOptions:
    """What a format is chosen for each matrix for.

    Attributes:
        model: the unquantized model, as `medusa-export --model` takes it; None for the one that
            the bundle names.
        target: where the plan is to run; None for the bundle's target.
        formats: to choose from; None for the target's own choice.
        max_kl: most KL divergence from the unquantized model, nats a token, as measured. The
            smallest plan is chosen.
        max_megabytes: most megabytes of all matrices, instead of `max_kl`. The plan with the least
            KL divergence is chosen.
    """

    model: str | None = None
    target: str | None = None
    formats: tuple[str, ...] | None = None
    max_kl: float | None = None
    max_megabytes: float | None = None

    def __post_init__(self) -> None:
        if self.max_kl is not None and self.max_megabytes is not None:
            raise CalibrationError("--max-kl and --max-size exclude each other: give one")
        if self.max_kl is None and self.max_megabytes is None:
            object.__setattr__(self, "max_kl", DEFAULT_MAX_KL)
        for name, value in (("max_kl", self.max_kl), ("max_megabytes", self.max_megabytes)):
            if value is not None and not 0 < value < math.inf:
                raise CalibrationError(f"{name} is {value}: it must be above 0")
