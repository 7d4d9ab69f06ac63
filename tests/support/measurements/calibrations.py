"""Sections of a calibration report of the usual size, made by hand."""

import numpy as np
from support.measurements.latency_records import choose_by_times, latency

from medusa_trt.calibration.intervals import Interval
from medusa_trt.calibration.latency.section import LatencySection
from medusa_trt.calibration.options import (
    LatencyOptions,
    QuantizationOptions,
    ReplySettings,
    ThresholdOptions,
    TreeOptions,
)
from medusa_trt.calibration.origin import Origin
from medusa_trt.calibration.quantization.section import (
    PLAN,
    UNQUANTIZED,
    FormatCost,
    FrontierPoint,
    PlanResult,
    QuantizationSection,
    SiteCosts,
)
from medusa_trt.calibration.threshold.measurement import rules_from_options
from medusa_trt.calibration.threshold.summary import (
    Recommendation,
    RuleSummary,
    ThresholdSection,
)
from medusa_trt.calibration.trees.heads_section import HeadsSection
from medusa_trt.calibration.trees.tree_section import TreeSection, advice_from_choice
from medusa_trt.runtime.engines.machine import Machine

_SETTINGS = ReplySettings(prompts="packaged", prompts_sha256="")
_ORIGIN = Origin(
    command="medusa-trt calibrate tree bundle",
    date="2026-01-01T00:00:00+00:00",
    duration_s=87,
    is_complete=True,
    machine=Machine.detect(),
)

HEADS = HeadsSection(
    origin=_ORIGIN,
    settings=_SETTINGS,
    num_prompts=None,
    num_replies=64,
    num_tokens=7000,
    counts=[7000, 6900, 6800],
    top_k_accuracies=[
        (1 - (1 - first) * np.arange(1, 11) ** -0.55).tolist() for first in (0.52, 0.33, 0.23)
    ],
    joint=[0.52, 0.25, 0.12],
    independent=[0.52, 0.17, 0.04],
    tree="smollm2_135m_6",
    accept_length=1.9,
)

_STEPS = LatencyOptions()
LATENCY = LatencySection.from_records(
    [
        latency(context, size, 3.8 + 0.15 * size + 0.002 * context + 0.1 * round_, round_)
        for context in _STEPS.contexts
        for size in _STEPS.sizes
        for round_ in range(_STEPS.rounds)
    ],
    2,
    _STEPS,
    _ORIGIN,
)

_CHOICE = choose_by_times({size: 3.8 + 0.15 * size for size in _STEPS.sizes})
TREE = TreeSection(
    origin=_ORIGIN,
    options=TreeOptions(),
    context=120,
    threads=2,
    settings=_SETTINGS,
    num_replies=64,
    choice=_CHOICE,
    previous_tree=((0,),),
    written=True,
    advice=advice_from_choice(_CHOICE, TreeOptions()),
)

_RULES = rules_from_options(ThresholdOptions())
THRESHOLD = ThresholdSection(
    origin=_ORIGIN,
    settings=_SETTINGS,
    tree="smollm2_135m_6",
    num_prompts=12,
    rules=tuple(
        RuleSummary(
            rule=rule,
            num_replies=12,
            accept_length=2.5 - (rule.posterior_threshold or 0.7) + 0.1 * rule.temperature,
            mean_logprob=-0.8 - 0.3 * rule.temperature + 0.2 * (rule.posterior_threshold or 0),
            logprob_gain=Interval(-0.1, 0.0, 0.1),
            distinct=(0.5, 0.8, 0.9),
            token_agreement=0.8,
        )
        for rule in _RULES
    ),
    recommendations=tuple(
        Recommendation(rule, "it is longer") for rule in _RULES if rule.posterior_threshold == 0.09
    ),
)


def _site(layer: int | None, kind: str, kl: float) -> SiteCosts:
    costs = (
        FormatCost(format="int4", size_bytes=5 * 10**5, kl=kl),
        FormatCost(format="int8", size_bytes=10**6, kl=kl / 100),
    )
    name = kind if layer is None else f"layers.{layer}.{kind}"
    return SiteCosts(
        name=name, layer=layer, kind=kind, num_weights=10**6, costs=costs, chosen="int8"
    )


def _plan(name: str, num_int4: int, megabytes: int, kl: float) -> PlanResult:
    return PlanResult(
        name=name,
        counts={"int4": num_int4, "int8": 121 - num_int4},
        size_bytes=megabytes * 10**6,
        predicted_kl=1.1 * kl,
        kl=kl,
        agreement=0.9,
        accept_length=1.9,
    )


QUANTIZATION = QuantizationSection(
    origin=_ORIGIN,
    settings=_SETTINGS,
    options=QuantizationOptions(),
    model="smollm2-135m",
    target="ort-cpu",
    num_replies=8,
    num_positions=500,
    sites=(
        *(
            _site(layer, kind, 1e-3 * (1 + layer % 3 + place))
            for layer in range(30)
            for place, kind in enumerate(("qkv", "o", "gate_up", "down"))
        ),
        _site(None, "lm_head", 2e-2),
    ),
    frontier=tuple(
        FrontierPoint(size_bytes=size * 10**6, predicted_kl=0.12 * float(np.exp((75 - size) / 18)))
        for size in range(75, 136)
    ),
    plans=(
        _plan(UNQUANTIZED, 0, 540, 0.0),
        _plan("int4", 120, 76, 0.121),
        _plan("int8", 0, 136, 0.0054),
        _plan("all int4", 121, 73, 0.135),
        _plan(PLAN, 83, 101, 0.0191),
    ),
    advice="The plan takes 101.0 MB.",
)
