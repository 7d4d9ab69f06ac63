"""What a model asks of its attention, watched on a few tokens."""

from itertools import product

import numpy as np
import pytest
import torch
from support.model_families import FAMILIES, MAX_LENGTH, WINDOW, config, weighted_model
from support.reference.attention import rotated
from support.tiny_models import random_model

from medusa_trt.export.modeling.attention_probe import (
    find_attention_problem,
    replace_attention,
    watch_attention,
    watch_attention_shapes,
)
from medusa_trt.export.modeling.rotary import IdentityRotary, copy_rotary, make_rotary_tables
from medusa_trt.export.weights.streamed_model import make_empty_model


def test_queries_and_keys_come_as_the_model_rotates_them() -> None:
    """The same run with the model's rotary module, and with one that rotates by nothing."""
    model = weighted_model(FAMILIES["phi"])  # rotates half of the dimensions
    (cos, sin) = make_rotary_tables(model, MAX_LENGTH, 8)[""]
    after = watch_attention(model, copy_rotary(model, MAX_LENGTH), None)
    before = watch_attention(model, IdentityRotary(2 * cos.shape[1]), torch.zeros(1, 1, 8, 8))
    assert [call.layer for call in after] == [call.layer for call in before] == [0, 1]
    tables = cos.numpy(), sin.numpy()
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one.value, other.value)
        for plain, turned in ((one.query, other.query), (one.key, other.key)):
            for head, position in product(range(plain.shape[1]), range(8)):
                expected = rotated(plain[0, head, position].numpy(), position, *tables)
                found = turned[0, head, position].numpy()
                np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_scaling_windows_and_caps_are_those_of_the_layers() -> None:
    model = random_model(FAMILIES["gemma2"])
    layers = [layer.self_attn for layer in model.model.layers]
    own = [(layer.scaling, layer.sliding_window) for layer in layers]
    mask = torch.zeros(1, 1, 8, 8)
    calls = watch_attention(model, copy_rotary(model, MAX_LENGTH), mask)
    assert [(call.scaling, call.window) for call in calls] == own and own[0] != own[1]
    assert all(call.softcap == 5.0 and call.mask is mask and not call.refused for call in calls)


def test_a_model_without_data_tells_the_shapes() -> None:
    model = make_empty_model(config("llama", num_key_value_heads=1, head_dim=32))
    calls = watch_attention_shapes(model, MAX_LENGTH)
    assert [tuple(call.key.shape) for call in calls] == [(1, 1, 8, 32)] * 2
    assert all(parameter.is_meta for parameter in model.parameters())


def test_a_model_has_its_attention_and_rotary_module_back_after_an_error() -> None:
    model = random_model(FAMILIES["llama"])
    own = model.base_model.rotary_emb, model.config._attn_implementation
    rotary = IdentityRotary(16)

    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), replace_attention(model, rotary, fail):
        assert model.base_model.rotary_emb is rotary
        model(torch.zeros(1, 2, dtype=torch.int64))
    assert (model.base_model.rotary_emb, model.config._attn_implementation) == own


def test_a_window_in_the_mask_alone_is_a_problem() -> None:
    model = random_model(FAMILIES["qwen2-window"])
    assert find_attention_problem(model, MAX_LENGTH) is None
    assert model.config.sliding_window == WINDOW
    model.model.layers[0].self_attn.sliding_window = None
    assert find_attention_problem(model, MAX_LENGTH) == "an attention mask of their own"


def test_norms_between_rotation_and_attention_are_a_problem_unless_they_commute() -> None:
    family = config("hunyuan_v1_dense", head_dim=16)
    assert find_attention_problem(random_model(family), MAX_LENGTH) is None
    problem = find_attention_problem(weighted_model(family), MAX_LENGTH)
    assert problem is not None and problem.endswith("right before attention")
