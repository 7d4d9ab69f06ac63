"""Rotary embeddings as tables, against the model's own; the longest sequence decides on them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from support.bundle_steps import (
    MAX_LOGIT_DIFFERENCE,
    expected_logits,
    exported,
    prefill,
)
from support.model_families import (
    FAMILIES,
    MAX_LENGTH,
    config,
    longrope,
    weighted_model,
)
from support.reference.attention import rotated
from support.tiny_models import VOCAB_SIZE, random_model
from torch import nn
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from medusa_trt.export.modeling.rotary import (
    IdentityRotary,
    find_longrope_length,
    fix_rotary,
    make_rotary_tables,
    rotate,
    rotation_types_from_config,
)
from medusa_trt.runtime.engines.ort_cpu import OrtEngine


@pytest.mark.slow
@pytest.mark.parametrize("original_length", [MAX_LENGTH - 1, MAX_LENGTH])
def test_the_longest_sequence_decides_on_longropes_frequencies(
    original_length: int, tmp_path: Path
) -> None:
    model = weighted_model(longrope(original_length))
    engine = OrtEngine(exported(model, tmp_path), capacity=2 * MAX_LENGTH)
    text = np.random.default_rng(0).integers(0, VOCAB_SIZE, MAX_LENGTH)
    difference = np.abs(prefill(engine, text, 16)[-1] - expected_logits(model, text)).max()
    assert difference <= MAX_LOGIT_DIFFERENCE
    # A shorter text: transformers has the long frequencies for the longest alone.
    difference = np.abs(prefill(engine, text[:40], 16)[-1] - expected_logits(model, text[:40]))
    assert (difference.max() <= MAX_LOGIT_DIFFERENCE) == (original_length == MAX_LENGTH)
    engine.close()


def rotary_of(model: PreTrainedModel) -> nn.Module:
    rotary = model.base_model.rotary_emb
    assert isinstance(rotary, nn.Module)
    return rotary


def test_states_are_rotated_one_by_one() -> None:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(3, 5, 16, generator=generator)
    cos, sin = torch.randn(2, 5, 4, generator=generator)  # of 8 of the 16 dimensions
    found = rotate(states, cos, sin).numpy()
    for head, position in np.ndindex(3, 5):
        expected = rotated(states[head, position].numpy(), position, cos.numpy(), sin.numpy())
        np.testing.assert_allclose(found[head, position], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", ["llama", "llama-llama3-rope", "llama-yarn-rope", "gemma3"])
def test_tables_rotate_as_the_model_does(family: str) -> None:
    model = random_model(FAMILIES[family])
    tables = make_rotary_tables(model, MAX_LENGTH, 20)
    assert set(tables) == set(rotation_types_from_config(model.config))
    states = torch.randn(1, 4, 20, model.config.head_dim)
    for kind, table in tables.items():
        layer_type = [kind] if kind else []
        angles = rotary_of(model)(states, torch.arange(20)[None], *layer_type)
        expected, _ = apply_rotary_pos_emb(states, states, *angles)
        torch.testing.assert_close(rotate(states, *table), expected)


def test_a_layer_that_does_not_rotate_has_a_table_that_changes_nothing() -> None:
    model = random_model(FAMILIES["smollm3"])
    assert rotation_types_from_config(model.config) == ["", None]
    states = torch.randn(1, 2, 6, 16)
    assert torch.equal(rotate(states, *make_rotary_tables(model, MAX_LENGTH, 6)[None]), states)
    rotated_by_zero, _ = apply_rotary_pos_emb(states, states, *IdentityRotary(16)(states))
    assert torch.equal(rotated_by_zero, states)


def test_a_model_that_is_fixed_rotates_short_texts_as_the_longest() -> None:
    model = random_model(longrope(MAX_LENGTH // 2))
    short, long = torch.arange(8)[None], torch.arange(MAX_LENGTH)[None]
    x = torch.zeros(1)
    expected = rotary_of(model)(x, long)[0][:, :8]
    own = rotary_of(model)
    assert not torch.allclose(own(x, short)[0], expected)
    with fix_rotary(model, MAX_LENGTH):
        assert torch.equal(rotary_of(model)(x, short)[0], expected)
    assert model.base_model.rotary_emb is own


def test_the_length_of_longropes_short_factors_is_found() -> None:
    assert find_longrope_length(longrope(16)) == 16
    alike = longrope(16)
    alike.rope_parameters["long_factor"] = alike.rope_parameters["short_factor"]
    assert find_longrope_length(alike) is None
    assert find_longrope_length(config("llama")) is None
