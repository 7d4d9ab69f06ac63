"""Costs of formats: what is measured, and what is read from the logs."""

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.random_texts import random_texts
from support.tiny_models import llama_config, random_model
from transformers import PreTrainedModel

from medusa_trt.calibration.quantization.costs import QuantizationCosts
from medusa_trt.calibration.quantization.estimate import SiteEstimator
from medusa_trt.calibration.quantization.meter import QuantizationMeter, Text
from medusa_trt.export.quantization.rounding import (
    LibraryRounding,
    Rounding,
    StandardRounding,
)
from medusa_trt.export.quantization.sites import sites_from_model
from medusa_trt.export.weight_formats import Format, WeightFormat


class StandInHeadsMeter:
    """Heads whose acceptance length follows from the hidden states that they are given."""

    def __init__(self, digest: str = "heads") -> None:
        self.digest = digest

    def measure_accept_length(self, hidden: Sequence[NDArray[np.float32]]) -> float:
        return 1 + len(hidden)


@pytest.fixture
def model() -> PreTrainedModel:
    return random_model(llama_config())


def open_costs(
    model: PreTrainedModel,
    folder: Path,
    *,
    texts: Sequence[Text] | None = None,
    rounding: Rounding | None = None,
    formats: Sequence[WeightFormat] = ("int4", "int8"),
    drafter: str = "heads",
) -> QuantizationCosts:
    return QuantizationCosts(
        model,
        sites_from_model(model),
        rounding or LibraryRounding(),
        formats,
        random_texts() if texts is None else texts,
        folder,
        StandInHeadsMeter(drafter),  # type: ignore[arg-type]
    )


def test_the_kl_of_a_site_is_the_mean_over_the_positions_of_all_texts(
    model: PreTrainedModel, tmp_path: Path
) -> None:
    costs, texts = open_costs(model, tmp_path), random_texts()
    assert costs.compute_site_kls("int4") == {}
    estimator = SiteEstimator(model, sites_from_model(model), LibraryRounding(), ("int4", "int8"))
    expected = [estimator.estimate(text, seed=index) for index, text in enumerate(texts)]
    num_positions = list(map(len, (text.token_ids for text in texts)))
    costs.estimate_text(1)
    for site, kl in costs.compute_site_kls("int8").items():
        assert kl == pytest.approx(expected[1]["int8"][site] / num_positions[1])
    costs.estimate_text(0)
    assert costs.num_positions == sum(num_positions)
    for format_ in ("int4", "int8"):
        kls = costs.compute_site_kls(format_)
        assert kls.keys() == expected[0][format_].keys()
        for site, kl in kls.items():
            total = expected[0][format_][site] + expected[1][format_][site]
            assert kl == pytest.approx(total / sum(num_positions))


def test_estimates_are_kept_for_the_same_model_texts_rounding_and_formats(
    model: PreTrainedModel, tmp_path: Path
) -> None:
    costs = open_costs(model, tmp_path)
    assert costs.list_missing_texts() == [0, 1]
    costs.estimate_text(0)
    again = open_costs(model, tmp_path)
    assert again.list_missing_texts() == [1]
    assert again.compute_site_kls("int4") == costs.compute_site_kls("int4")
    assert open_costs(model, tmp_path, formats=["int8"]).list_missing_texts() == [1]
    assert open_costs(model, tmp_path, formats=["int8", "fp8"]).list_missing_texts() == [0, 1]
    assert open_costs(model, tmp_path, texts=random_texts()[::-1]).list_missing_texts() == [0, 1]
    standard = open_costs(model, tmp_path, rounding=StandardRounding())
    assert standard.list_missing_texts() == [0, 1]
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.mul_(1.01)
    assert open_costs(model, tmp_path).list_missing_texts() == [0, 1]


def test_a_measured_plan_is_found_again_by_its_rounded_sites_and_the_heads(
    model: PreTrainedModel, tmp_path: Path
) -> None:
    formats: dict[str, Format] = {"layers.0.qkv": "int4", "layers.1.down": "fp32"}
    unrounded = copy.deepcopy(model)  # A measured model stays rounded.
    costs = open_costs(copy.deepcopy(model), tmp_path)
    assert costs.find_plan(formats) is None
    record = costs.measure_plan(formats)
    sites = sites_from_model(unrounded)
    meter = QuantizationMeter(unrounded, sites, LibraryRounding(), random_texts())
    change = meter.measure({"layers.0.qkv": "int4"})
    assert record.kl == pytest.approx(change.kl) and record.agreement == change.agreement
    assert record.accept_length == 3 and record.formats == {"layers.0.qkv": "int4"}
    assert open_costs(model, tmp_path).find_plan({"layers.0.qkv": "int4"}) == record
    assert open_costs(model, tmp_path).find_plan({"layers.0.qkv": "int8"}) is None
    assert open_costs(model, tmp_path, drafter="other heads").find_plan(formats) is None
