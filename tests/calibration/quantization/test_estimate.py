"""Estimated effects of rounding against slopes and measurements."""

import pytest
import torch
from support.random_texts import random_texts
from support.tiny_models import llama_config, random_model

from medusa_trt.calibration.quantization.estimate import SiteEstimator
from medusa_trt.calibration.quantization.meter import QuantizationMeter, compute_logits
from medusa_trt.export.quantization.rounding import LibraryRounding, StandardRounding
from medusa_trt.export.quantization.sites import sites_from_model
from medusa_trt.export.weight_formats import WeightFormat


def test_an_estimate_is_half_the_square_of_the_slope() -> None:
    """Against finite differences: what the drawn tokens' likelihood loses when a site moves."""
    model = random_model(llama_config(initializer_range=0.1))
    text, sites = random_texts(1)[0], sites_from_model(model)
    estimator = SiteEstimator(model, sites, StandardRounding(), ["int4"])
    estimates = estimator.estimate(text, seed=5, num_samples=1)["int4"]
    assert list(estimates) == [site.name for site in sites]
    with torch.no_grad():
        probabilities = compute_logits(model, text).softmax(-1)
    drawn = torch.multinomial(probabilities, 1, generator=torch.Generator().manual_seed(5))
    model.double()

    def likelihood() -> float:
        with torch.no_grad():
            return float(compute_logits(model, text).log_softmax(-1).gather(1, drawn).sum())

    for site in sites:
        slope = 0.0
        for path in site.modules:
            weight = model.get_parameter(f"{path}.weight")
            unrounded = weight.detach().clone()
            matrix = unrounded.float().numpy().T
            rounded = StandardRounding().round_weight(matrix, "int4")
            change = torch.from_numpy(rounded - matrix).T.double()
            step = 1e-2  # not less: the norms compute in single precision all the same
            weight.data = unrounded + step * change
            above = likelihood()
            weight.data = unrounded - step * change
            slope += (above - likelihood()) / (2 * step)
            weight.data = unrounded
        assert estimates[site.name] == pytest.approx(slope**2 / 2, rel=0.01)


def test_estimates_agree_with_measurements() -> None:
    model = random_model(llama_config(initializer_range=0.05, num_hidden_layers=1))
    sites, rounding = sites_from_model(model), LibraryRounding()
    text = random_texts(3)[2]
    formats: tuple[WeightFormat, ...] = ("int8", "int4")
    estimated = SiteEstimator(model, sites, rounding, formats).estimate(text, 0, 200)
    meter = QuantizationMeter(model, sites, rounding, [text])
    for format_ in formats:
        for site in sites:
            measured = meter.measure({site.name: format_}).kl * len(text.token_ids)
            # 200 draws have a standard error of 10 %.
            assert estimated[format_][site.name] == pytest.approx(measured, rel=0.35)
