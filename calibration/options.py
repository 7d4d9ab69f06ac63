"""Options of the calibrations. This module imports nothing heavy: the command line reads it."""

import math
from dataclasses import dataclass
from typing import Annotated

import msgspec

from medusa_trt.errors import CalibrationError, check_range
from medusa_trt.export.options import TARGET_FLAG
from medusa_trt.runtime.options import SamplingOptions
from medusa_trt.types_of_options import check_types

DEFAULT_MAX_NEW_TOKENS = 128
DEFAULT_MAX_KL = 0.02


class ReplySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How replies are made; replies of other settings are not mixed with these.

    Attributes:
        prompts: where the prompts come from.
        prompts_sha256: hash of the prompts themselves.
        bundle: digest of the bundle that replies; see `Bundle.digest`.
        max_new_tokens: most tokens of each reply.
        temperature: temperature of the replies; 0 makes greedy replies.
        seed: seed of the first prompt's reply; each further prompt has the next number.
    """

    prompts: str
    prompts_sha256: str
    bundle: str = ""
    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS
    temperature: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 2:
            raise CalibrationError(
                f"max_new_tokens is {self.max_new_tokens}: it must be at least 2, since the heads "
                "draft after the first token"
            )
        check_range(self, CalibrationError, "seed", 0, 2**64 - 1)
        self.sampling(0)

    def sampling(self, index: int) -> SamplingOptions:
        """The distribution of the reply to prompt `index`."""
        return SamplingOptions(temperature=self.temperature, seed=(self.seed + index) % 2**64)


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyOptions:
    """Which steps are timed.

    Attributes:
        sizes: numbers of nodes to time; 1, plain decoding, is always among them.
        contexts: numbers of tokens in the KV cache before the step.
        rounds: samples of each size at each context.
        batch_size: sequences of a step.
        num_tokens: tokens that are generated for one sample.
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
        check_types(self, CalibrationError)
        for name in ("sizes", "contexts"):
            values = getattr(self, name)
            if not values or min(values) < 1:
                raise CalibrationError(f"{name} are {list(values)}: give numbers of at least 1")
        check_range(self, CalibrationError, "rounds batch_size", 1)
        check_range(self, CalibrationError, "num_tokens", 2)
        object.__setattr__(self, "sizes", tuple(sorted({1, *self.sizes})))
        object.__setattr__(self, "contexts", tuple(sorted(set(self.contexts))))


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeOptions:
    """What the best tree is searched for.

    Attributes:
        context: tokens in the KV cache (default: the mean over the recorded replies).
        batch_size: sequences of a step.
        min_speedup: choose plain decoding where no tree is predicted to be this many times as fast.
        max_nodes: most nodes of a tree.
    """

    context: int | None = None
    batch_size: int = 1
    min_speedup: float = 1.02
    max_nodes: int = 64

    def __post_init__(self) -> None:
        check_types(self, CalibrationError)
        check_range(self, CalibrationError, "context batch_size min_speedup", 1)
        check_range(self, CalibrationError, "max_nodes", 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class ThresholdOptions:
    """Which thresholds of typical acceptance are compared, and what is recommended.

    Attributes:
        thresholds: values of ε to compare.
        alpha: one δ for all values of ε (default: sqrt(ε), as in the Medusa paper).
        temperatures: temperatures to compare them at.
        quality_loss: recommend an ε only if it loses at most this much of the sampler's
            log-likelihood, in nats per token.
        diversity_loss: recommend an ε only if it loses at most this much of the sampler's
            distinct-2.
    """

    thresholds: tuple[float, ...] = (0.01, 0.03, 0.06, 0.09, 0.15, 0.25)
    alpha: float | None = None
    temperatures: tuple[float, ...] = (0.5, 0.7, 1.0)
    quality_loss: float = 0.05
    diversity_loss: float = 0.05

    def __post_init__(self) -> None:
        check_types(self, CalibrationError)
        for name, most in (("thresholds", 1.0), ("temperatures", math.inf)):
            values = getattr(self, name)
            if not values or not all(0 < v <= most and math.isfinite(v) for v in values):
                limit = f" and at most {most:g}" if math.isfinite(most) else ""
                raise CalibrationError(f"{name} are {list(values)}: give numbers above 0{limit}")
        check_range(self, CalibrationError, "alpha", 0, 1)
        check_range(self, CalibrationError, "quality_loss diversity_loss", 0)

    def choose_alpha(self, threshold: float) -> float:
        """δ at this ε."""
        return math.sqrt(threshold) if self.alpha is None else self.alpha


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationOptions:
    """Under which budget a format is chosen for each weight matrix.

    Attributes:
        model: the unquantized model, as medusa-export takes it (default: the model that the bundle
            names).
        target: what will run the weights (default: the bundle's target).
        formats: formats to choose from (default: int4,int8 for ort-cpu; int4,fp16 for ort-cuda;
            int4,int8,fp16 for the other targets).
        max_kl: choose the smallest weights whose KL divergence from the unquantized model, as
            measured in nats per token, is at most this (default: 0.02, without `max_megabytes`).
        max_megabytes: choose the weights of least KL divergence whose matrices take at most this
            many megabytes (default: no such limit).
        precision: take the formats of this precision of the target, such as int4 (default: a
            choice under a budget).
        compensate: round the plan's int4 and int8 matrices so that they make up for each other's
            errors on replies (GPTQ), and write their values beside the plan. It takes about 2 s
            of a core for a million weights.
        num_compensation_prompts: with compensation, number of further prompts whose replies the
            rounding is fitted to; the plans are compared on the others.
    """

    model: str | None = None
    target: Annotated[str | None, TARGET_FLAG] = None
    formats: tuple[str, ...] | None = None
    max_kl: float | None = None
    max_megabytes: Annotated[float | None, "--max-size MB"] = None
    precision: str | None = None
    compensate: bool = False
    num_compensation_prompts: Annotated[int, "--compensation-prompts N"] = 64

    def __post_init__(self) -> None:
        check_types(self, CalibrationError)
        if self.max_kl is not None and self.max_megabytes is not None:
            raise CalibrationError("--max-kl and --max-size exclude each other: give one")
        check_range(self, CalibrationError, "num_compensation_prompts", 1)
        has_budget = self.max_kl is not None or self.max_megabytes is not None
        if self.precision is not None:
            if has_budget:
                raise CalibrationError(
                    "--precision excludes --max-kl and --max-size: give one of them"
                )
        elif not has_budget:
            object.__setattr__(self, "max_kl", DEFAULT_MAX_KL)
        for name in ("max_kl", "max_megabytes"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise CalibrationError(f"{name} is {value}: it must be above 0")
