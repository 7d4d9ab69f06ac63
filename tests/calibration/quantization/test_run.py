"""The search for a plan on a tiny model: what it measures, chooses and writes."""

import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.random_texts import random_texts

from medusa_trt.calibration.options import QuantizationOptions, ReplySettings
from medusa_trt.calibration.origin import Origin
from medusa_trt.calibration.progress import Progress
from medusa_trt.calibration.prompts import BenchPrompt
from medusa_trt.calibration.quantization.costs import QuantizationCosts
from medusa_trt.calibration.quantization.inputs import HeadsMeter
from medusa_trt.calibration.quantization.meter import Formats, QuantizationMeter, Text
from medusa_trt.calibration.quantization.run import QuantizationRun, open_run
from medusa_trt.calibration.quantization.section import QuantizationSection
from medusa_trt.calibration.trees.head_ranks import RankRecord
from medusa_trt.errors import CalibrationError
from medusa_trt.export.models.base_model import BaseModel
from medusa_trt.export.quantization.plan import plan_from_file
from medusa_trt.export.quantization.rounding import LibraryRounding
from medusa_trt.export.quantization.sites import sites_from_model
from medusa_trt.export.quantization.stored_values import open_values
from medusa_trt.export.targets import TARGETS
from medusa_trt.export.weight_formats import is_rounded
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.engines.machine import Machine
from medusa_trt.runtime.session import MedusaSession

SETTINGS = ReplySettings(prompts="test", prompts_sha256="")


class StandInHeadsMeter:
    digest = "heads"

    def measure_accept_length(self, hidden: Sequence[NDArray[np.float32]]) -> float:
        return 1.5


def run_search(
    base: BaseModel, folder: Path, target: str = "ort-cpu", **options: object
) -> QuantizationSection:
    """Searches on a copy of the model, since a search rounds its matrices, and writes the plan."""
    run = QuantizationRun(
        dataclasses.replace(base, model=copy.deepcopy(base.model)),
        random_texts(),
        folder,
        StandInHeadsMeter(),  # type: ignore[arg-type]
        QuantizationOptions(**options),  # type: ignore[arg-type]
        target,
        random_texts(3),
    )
    run.measure()
    run.save_plan(folder)
    origin = Origin.from_command(Machine.detect(), duration_s=1.0, is_complete=True)
    return run.make_section(origin, SETTINGS)


def test_the_plan_is_the_smallest_within_the_bound_as_measured(
    base: BaseModel, tmp_path: Path
) -> None:
    section = run_search(base, tmp_path, max_kl=0.1)
    plans = {plan.name: plan for plan in section.plans}
    assert list(plans) == ["unquantized", "int8", "int4", "all int4", "plan"]
    assert plans["plan"].kl <= 0.1 < plans["all int4"].kl
    assert plans["all int4"].size_bytes < plans["plan"].size_bytes < plans["int8"].size_bytes
    chosen = {site.name: site.chosen for site in section.sites}
    predicted = sum(
        cost.kl for site in section.sites for cost in site.costs if cost.format == site.chosen
    )
    assert plans["plan"].predicted_kl == pytest.approx(predicted)
    model = copy.deepcopy(base.model)
    meter = QuantizationMeter(model, sites_from_model(model), LibraryRounding(), random_texts())
    change = meter.measure(chosen)  # type: ignore[arg-type]
    assert plans["plan"].kl == pytest.approx(change.kl)
    written = plan_from_file(tmp_path / "quantization.json")
    assert {site.name: site.format for site in written.sites} == chosen
    assert section.num_positions == sum(len(text.token_ids) for text in random_texts())


def test_a_size_is_kept(base: BaseModel, tmp_path: Path) -> None:
    section = run_search(base, tmp_path, max_megabytes=0.07)
    plan, all_int8 = section.plans[-1], section.plans[1]
    assert plan.name == "plan" and plan.size_bytes <= 70_000 < all_int8.size_bytes
    smaller = [point for point in section.frontier if point.size_bytes <= 70_000]
    assert plan.predicted_kl == pytest.approx(smaller[-1].predicted_kl)


def test_a_plan_for_a_device(base: BaseModel, tmp_path: Path) -> None:
    formats = ("int4", "fp8", "fp16")
    section = run_search(base, tmp_path, target="tensorrt", formats=formats, max_kl=0.02)
    assert section.target == "tensorrt" and section.plans[-1].kl <= 0.02
    assert {plan.name for plan in section.plans} >= {"int4", "fp8", "all int4", "all fp8"}
    assert not (tmp_path / "modelopt.json").exists()  # it has no such mix
    plan = plan_from_file(tmp_path / "quantization.json")
    assert plan.target == "tensorrt" and {s.format for s in plan.sites} <= set(formats)


@pytest.mark.parametrize("target", ["ort-cpu", "tensorrt"])
def test_a_plan_is_compensated(base: BaseModel, tmp_path: Path, target: str) -> None:
    section = run_search(base, tmp_path, target=target, precision="int4", compensate=True)
    nearest, compensated = section.plans
    assert (nearest.name, compensated.name) == ("plan", "plan, compensated")
    assert compensated.kl < nearest.kl and compensated.predicted_kl is None
    assert "plan, compensated" in section.advice
    path = tmp_path / "quantization.json"
    plan = plan_from_file(path)
    values = open_values(path, plan, TARGETS[target], base.weights)
    assert values is not None
    rounded = [site for site in plan.sites if is_rounded(site.format)]
    assert {name: entry.format for name, entry in values.entries.items()} == {
        name: site.format for site in rounded for name in site.weights
    }
    # The unembedding stays in half precision on a device.
    assert len(values.entries) == (15 if target == "ort-cpu" else 14)


def test_compensated_values_are_made_once_for_a_plan(
    base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = run_search(base, tmp_path, precision="int4", compensate=True)
    compensate, calls = QuantizationCosts.compensate, []

    def count(self: QuantizationCosts, formats: Formats, *rest: object) -> object:
        calls.append(formats)
        return compensate(self, formats, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(QuantizationCosts, "compensate", count)
    again = run_search(base, tmp_path, precision="int4", compensate=True)
    assert again.plans == section.plans and not calls
    run_search(base, tmp_path, precision="int8", compensate=True)
    assert len(calls) == 1
    without = run_search(base, tmp_path, precision="int4")
    assert len(calls) == 1 and len(without.plans) == 1
    assert plan_from_file(tmp_path / "quantization.json").values is msgspec.UNSET


def test_an_interrupt_leaves_no_half_written_values(
    base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_advanced = 0

    def interrupt(_: Progress) -> None:
        nonlocal num_advanced
        num_advanced += 1
        if num_advanced == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "advance", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_search(base, tmp_path, precision="int4", compensate=True)
    assert {path.name for path in tmp_path.iterdir()} == {"quantization_plans.jsonl"}


def test_an_unknown_precision_is_refused(base: BaseModel, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="--precision is int8: with formats int4, fp16"):
        run_search(base, tmp_path, target="ort-cuda", precision="int8")


def test_only_a_plan_that_modelopt_can_follow_leaves_a_file_for_it(
    base: BaseModel, tmp_path: Path
) -> None:
    run_search(base, tmp_path, target="tensorrt", max_kl=0.1)
    assert "nodes_to_exclude" in msgspec.json.decode((tmp_path / "modelopt.json").read_bytes())
    run_search(base, tmp_path, max_kl=0.1)
    assert not (tmp_path / "modelopt.json").exists()


def test_a_second_search_measures_nothing(
    base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = run_search(base, tmp_path, max_kl=0.1)

    def refuse(*_: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(QuantizationCosts, "estimate_text", refuse)
    monkeypatch.setattr(QuantizationCosts, "measure_plan", refuse)
    again = run_search(base, tmp_path, max_kl=0.1)
    assert (again.sites, again.plans, again.frontier) == (
        section.sites,
        section.plans,
        section.frontier,
    )
    with pytest.raises(AssertionError, match="measured again"):
        run_search(base, tmp_path, target="tensorrt", max_kl=0.1)


def test_a_run_on_a_bundle_has_its_threads_only_within_the_block(
    base: BaseModel, tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [BenchPrompt("a", "", ("hello",))]
    record = RankRecord(
        settings=SETTINGS, prompt_id="a", prompt_tokens=5, token_ids=[1, 2, 3], ranks=[]
    )
    seen: list[tuple[Sequence[Text], int]] = []
    monkeypatch.setattr(
        HeadsMeter, "close", lambda self: seen.append((self._texts, torch.get_num_threads()))
    )
    usual = torch.get_num_threads()
    with open_run(
        tiny_bundle,
        tmp_path,
        lambda: MedusaSession(tiny_bundle, num_threads=1),
        base,
        prompts,
        [record],
        QuantizationOptions(),
        usual + 1,
    ) as run:
        assert run.progress.total > 1
    [(texts, num_threads)] = seen
    assert [text.token_ids for text in texts] == [(1, 2, 3)] and num_threads == usual + 1
    assert torch.get_num_threads() == usual
