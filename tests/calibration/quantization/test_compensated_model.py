"""Compensated rounding of a whole model: which matrices, on which inputs, and what is left."""

import copy

import pytest
import torch
from support.random_texts import random_texts
from support.tiny_models import llama_config, random_model
from transformers import PreTrainedModel

from medusa_trt.calibration.quantization.compensated_model import (
    compensate_model,
    list_compensated_sites,
)
from medusa_trt.calibration.quantization.compensation import (
    choose_better,
    factor_moments,
    round_compensated,
)
from medusa_trt.calibration.quantization.meter import QuantizationMeter, RoundedModel, Text
from medusa_trt.export.quantization.rounding import LibraryRounding, Rounding, StandardRounding
from medusa_trt.export.quantization.sites import Site, sites_from_model
from medusa_trt.export.weight_formats import Format, WeightFormat

ROUNDING = LibraryRounding()


@pytest.fixture
def model() -> PreTrainedModel:
    return random_model(llama_config())


def formats_in_turn(sites: list[Site], *formats: Format) -> dict[str, Format]:
    return {site.name: formats[index % len(formats)] for index, site in enumerate(sites)}


def gather_inputs(model: PreTrainedModel, path: str, texts: list[Text]) -> torch.Tensor:
    """Inputs (tokens, inputs) of a layer, one text after the other and without padding."""
    rows: list[torch.Tensor] = []
    handle = model.get_submodule(path).register_forward_hook(
        lambda _, inputs, __: rows.append(inputs[0][0])
    )
    with torch.inference_mode():
        for text in texts:
            model(torch.tensor([[*text.prompt_ids, *text.token_ids]]), use_cache=False)
    handle.remove()
    return torch.cat(rows)


@pytest.mark.parametrize("formats", [("int4",), ("int4", "int8", "fp32")])
def test_each_matrix_is_rounded_for_what_it_reads_in_the_rounded_model(
    model: PreTrainedModel, formats: tuple[Format, ...]
) -> None:
    sites, texts = sites_from_model(model), random_texts(3)
    planned = formats_in_turn(sites, *formats)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    matrices = compensate_model(model, sites, ROUNDING, planned, texts)
    assert all(torch.equal(before[name], value) for name, value in model.named_parameters())
    assert not any(module._forward_pre_hooks for module in model.modules())
    compensated = list_compensated_sites(model, sites, ROUNDING, planned)
    assert set(matrices) == {name for site in compensated for name in site.weights}

    slow = RoundedModel(copy.deepcopy(model), sites, ROUNDING)
    done: dict[str, Format] = {}
    num_equal = num_all = 0
    for site in sites:
        format_ = planned[site.name]
        if format_ == "fp32":
            continue
        slow.set(done, matrices)
        rows = gather_inputs(slow.model, site.modules[0], texts)
        rows = ROUNDING.round_inputs(rows, format_)  # type: ignore[arg-type]
        moments = rows.T.double() @ rows.double()
        factors = factor_moments(moments)
        assert factors is not None
        for name in site.weights:
            weight = before[name]
            nearest = ROUNDING.round_weight(weight.numpy().T, format_)  # type: ignore[arg-type]
            grid = ROUNDING.find_grid(weight.shape[1], format_)  # type: ignore[arg-type]
            assert grid is not None
            values, _, _ = choose_better(
                weight,
                moments,
                round_compensated(weight, factors, grid),
                torch.from_numpy(nearest).T,
            )
            same = matrices[name].compute_values() == values.numpy()
            num_equal, num_all = num_equal + same.sum(), num_all + same.size
        done[site.name] = format_
    # The sums of the moments differ in their last bits, and some value lies between two codes.
    assert num_equal / num_all > 0.97


def test_the_compensated_model_is_nearer_to_the_unrounded_one(model: PreTrainedModel) -> None:
    sites, texts = sites_from_model(model), random_texts(3)
    planned = formats_in_turn(sites, "int4")
    meter = QuantizationMeter(model, sites, ROUNDING, texts)
    nearest = meter.measure(planned)
    meter.restore()
    num_done = 0

    def advance() -> None:
        nonlocal num_done
        num_done += 1

    matrices = compensate_model(model, sites, ROUNDING, planned, texts, advance)
    assert num_done == len(sites)
    assert meter.measure(planned, matrices).kl < nearest.kl
    assert meter.measure(planned).kl == pytest.approx(nearest.kl)


@pytest.mark.parametrize(
    ("rounding", "format_", "num_left_out"),
    [(ROUNDING, "int4", 0), (StandardRounding(), "int8", 0), (StandardRounding(), "fp8", 9)],
)
def test_whole_numbers_are_compensated(
    model: PreTrainedModel, rounding: Rounding, format_: WeightFormat, num_left_out: int
) -> None:
    sites = sites_from_model(model)
    planned = formats_in_turn(sites, format_)
    compensated = list_compensated_sites(model, sites, rounding, planned)
    assert len(compensated) == len(sites) - num_left_out
    matrices = compensate_model(model, sites, rounding, planned, random_texts())
    assert len(matrices) == sum(len(site.weights) for site in compensated)


def test_an_unembedding_that_is_the_embedding_is_left_out() -> None:
    model = random_model(llama_config(tie_word_embeddings=True))
    sites = sites_from_model(model)
    planned = formats_in_turn(sites, "int8")
    compensated = list_compensated_sites(model, sites, ROUNDING, planned)
    assert [site.name for site in sites if site not in compensated] == ["unembedding"]
    matrices = compensate_model(model, sites, ROUNDING, planned, random_texts())
    assert not any("lm_head" in name or "embed" in name for name in matrices)


def test_a_matrix_that_needs_no_rounding_is_left_out(model: PreTrainedModel) -> None:
    sites = sites_from_model(model)
    weight = model.get_parameter(sites[1].weights[0])
    weight.data.copy_(torch.from_numpy(ROUNDING.round_weight(weight.detach().numpy().T, "int4")).T)
    matrices = compensate_model(
        model, sites, ROUNDING, formats_in_turn(sites, "int4"), random_texts()
    )
    assert sites[1].weights[0] not in matrices and sites[0].weights[0] in matrices


def test_an_error_leaves_the_model_as_it_was(model: PreTrainedModel) -> None:
    sites = sites_from_model(model)
    before = {name: id(value) for name, value in model.named_parameters()}

    def fail() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compensate_model(
            model, sites, ROUNDING, formats_in_turn(sites, "int4"), random_texts(), fail
        )
    assert {name: id(value) for name, value in model.named_parameters()} == before
    assert not any(module._forward_pre_hooks for module in model.modules())
