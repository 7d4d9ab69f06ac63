"""Measured effects of rounding against a slow computation."""

import copy

import numpy as np
import pytest
import torch
from scipy.stats import entropy
from support.random_texts import random_texts
from support.reference.linear import quantized_rows
from support.tiny_models import llama_config, random_model
from transformers import PreTrainedModel

from medusa_trt.calibration.quantization.meter import QuantizationMeter, Text, compute_logits
from medusa_trt.export.quantization.library import BLOCK_SIZES, dequantize_weight, quantize_weight
from medusa_trt.export.quantization.rounding import LibraryRounding
from medusa_trt.export.quantization.sites import Site, sites_from_model
from medusa_trt.export.weight_formats import BITS, WeightFormat


def slowly_rounded(
    model: PreTrainedModel, sites: list[Site], formats: dict[str, WeightFormat]
) -> PreTrainedModel:
    """A copy that multiplies as the operator library does, one number at a time."""
    rounded = copy.deepcopy(model)
    for site in sites:
        if (format_ := formats.get(site.name)) is None:
            continue
        for path in site.modules:
            bits = BITS[format_]
            matrix = model.get_parameter(f"{path}.weight").detach().numpy().T
            weight = dequantize_weight(quantize_weight(matrix, bits), *matrix.shape)

            def forward(
                x: torch.Tensor, weight: np.ndarray = weight, block: int = BLOCK_SIZES[bits]
            ) -> torch.Tensor:
                rows = quantized_rows(x.reshape(-1, x.shape[-1]).numpy(), block) @ weight
                return torch.from_numpy(rows.astype(np.float32)).reshape(*x.shape[:-1], -1)

            rounded.get_submodule(path).forward = forward
    return rounded


def slow_logits(model: PreTrainedModel, text: Text) -> np.ndarray:
    """After each position, every time from the text's beginning."""
    ids = [*text.prompt_ids, *text.token_ids]
    rows = []
    for length in range(len(text.prompt_ids), len(ids)):
        with torch.no_grad():
            rows.append(model(torch.tensor([ids[:length]])).logits[0, -1].double().numpy())
    return np.array(rows)


@pytest.mark.parametrize("tied", [False, True])
def test_a_measurement_equals_a_slow_computation(tied: bool) -> None:
    model = random_model(llama_config(tie_word_embeddings=tied))
    sites = sites_from_model(model)
    meter = QuantizationMeter(model, sites, LibraryRounding(), random_texts())
    before = [slow_logits(model, text) for text in random_texts()]
    cases: list[dict[str, WeightFormat]] = [
        {"layers.1.gate_up": "int4"},
        {"unembedding": "int8", "layers.0.qkv": "int4"},
        {site.name: "int8" for site in sites},
        {"layers.0.down": "int8"},
    ]
    for formats in cases:
        change = meter.measure(formats)
        rounded = slowly_rounded(model, sites, formats)
        after = [slow_logits(rounded, text) for text in random_texts()]
        p, q = (np.exp(np.concatenate(logits)) for logits in (before, after))
        assert change.kl == pytest.approx(entropy(p, q, axis=1).mean(), rel=2e-2)
        assert change.agreement == (p.argmax(-1) == q.argmax(-1)).mean()
        assert [len(rows) for rows in change.hidden] == [17, 6]
    # What was rounded is as it was.
    assert meter.measure({}).kl == 0
    for text, logits in zip(random_texts(), before, strict=True):
        with torch.no_grad():
            np.testing.assert_allclose(compute_logits(model, text).numpy(), logits, atol=1e-4)


def test_hidden_states_are_what_the_heads_read() -> None:
    model = random_model(llama_config())
    text = random_texts(1)[0]
    meter = QuantizationMeter(model, sites_from_model(model), LibraryRounding(), [text])
    with torch.no_grad():
        ids = torch.tensor([[*text.prompt_ids, *text.token_ids[:-1]]])
        expected = model.model(ids).last_hidden_state[0, len(text.prompt_ids) - 1 :]
    hidden = meter.measure({"unembedding": "int4"}).hidden[0]
    np.testing.assert_allclose(hidden, expected.numpy(), atol=1e-5)
