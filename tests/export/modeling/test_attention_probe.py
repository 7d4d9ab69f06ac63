"""What a model asks of its attention, watched on a few tokens."""

from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from support.model_families import FAMILIES, MAX_LENGTH, WINDOW, config, weighted_model
from support.reference.attention import rotated
from support.tiny_models import random_model

from medusa_trt.export.modeling.attention_probe import (
    chunks_from_config,
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
    assert find_attention_problem(model, WINDOW) is None, "as long as the longest sequence"
    model.model.layers[0].self_attn.sliding_window = WINDOW + 1
    assert find_attention_problem(model, MAX_LENGTH) == "an attention mask of their own"


def test_chunks_are_those_of_the_mask() -> None:
    model = random_model(FAMILIES["chunked_llama"])
    assert chunks_from_config(model.config) == [WINDOW, WINDOW]
    assert find_attention_problem(model, MAX_LENGTH) is None
    assert model.config.attention_chunk_size == WINDOW
    model.config.layer_types = ["full_attention", "chunked_attention"]
    assert find_attention_problem(model, MAX_LENGTH) == "an attention mask of their own"


def test_sinks_are_scores_of_the_heads() -> None:
    model = weighted_model(FAMILIES["flint"])
    calls = watch_attention(model, copy_rotary(model, MAX_LENGTH), None)
    sinks = [layer.self_attn.sinks for layer in model.model.layers]
    assert [call.sinks for call in calls] == sinks and sinks[0].shape == (4,)
    assert find_attention_problem(model, MAX_LENGTH) is None


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("s_aux", "attention sinks other than one for each head"),
        ("position_bias", "an attention position bias"),
        ("gate", "an argument gate of its attention"),
    ],
)
def test_tensors_that_no_form_takes_are_named(name: str, problem: str) -> None:
    model = random_model(FAMILIES["llama"])
    attend = model.model.layers[1].self_attn.forward
    model.model.layers[1].self_attn.forward = partial(attend, **{name: torch.zeros(1, 4, 8, 1)})
    assert find_attention_problem(model, MAX_LENGTH) == problem


def test_queries_that_change_with_the_number_of_cached_tokens_are_a_problem() -> None:
    """As those of Llama 4 do, which a graph would compute as if nothing were cached."""
    model = random_model(FAMILIES["llama"])
    layer = model.model.layers[1].self_attn
    attend = layer.forward

    def scale(hidden_states: torch.Tensor, *args: Any, **options: Any) -> Any:
        cache = options.get("past_key_values") or options.get("cache")
        num_cached = 0 if cache is None else cache.get_seq_length(1)
        return attend(hidden_states * (1 + num_cached // 100), *args, **options)

    layer.forward = scale
    assert find_attention_problem(model, 100) is None
    problem = find_attention_problem(model, 108)
    assert problem == "queries that are scaled by the number of cached tokens"


def test_norms_between_rotation_and_attention_are_a_problem_unless_they_commute() -> None:
    family = config("hunyuan_v1_dense", head_dim=16)
    assert find_attention_problem(random_model(family), MAX_LENGTH) is None
    problem = find_attention_problem(weighted_model(family), MAX_LENGTH)
    assert problem is not None and problem.endswith("right before attention")
