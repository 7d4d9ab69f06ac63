"""The text parts of models that read images: they compute what the whole models do."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from support.bundle_steps import (
    MAX_LOGIT_DIFFERENCE,
    WIDE_TREE,
    check_greedy_reply,
    expected_logits,
    exported,
    path_to,
    prefill,
    random_tree,
    verify,
)
from support.checkpoints.multimodal_families import (
    CLIP,
    FAMILIES,
    config,
    save_multimodal_model,
    weighted_whole_model,
)
from support.model_families import MAX_LENGTH, WINDOW
from support.tiny_models import VOCAB_SIZE, make_byte_tokenizer
from transformers import AutoConfig

from medusa_trt.errors import ExportError
from medusa_trt.export.models.base_model import (
    BaseModel,
    load_base_model,
    load_model,
    open_base_model,
    save_model,
)
from medusa_trt.export.models.multimodal.text_part import make_text_part, take_text_part
from medusa_trt.export.models.source import source_from_name
from medusa_trt.export.weights.streamed_model import supply_weights
from medusa_trt.runtime.engines.ort_cpu import OrtEngine

NUM_PREFIX = 30
TEXT = np.arange(20)


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(family, marks=[] if family == "qwen2_vl" else [pytest.mark.slow])
        for family in FAMILIES
    ],
)
def test_a_bundle_computes_what_the_whole_model_does(family: str, tmp_path: Path) -> None:
    model = weighted_whole_model(FAMILIES[family])
    bundle = exported(model, tmp_path, tree=WIDE_TREE)
    check_greedy_reply(bundle, model)
    engine = OrtEngine(bundle, capacity=2 * MAX_LENGTH)
    rng = np.random.default_rng(0)
    text = rng.integers(0, 256, NUM_PREFIX)
    tree = random_tree(rng, 16, min_depth=WINDOW + 2)
    tokens = rng.integers(0, 256, tree.num_nodes)
    prefill(engine, text, NUM_PREFIX)
    step = verify(engine, tokens, tree, NUM_PREFIX)
    for node in range(tree.num_nodes):
        expected = expected_logits(model, np.append(text, tokens[path_to(tree, node)]))
        assert np.abs(step.logits[node] - expected).max() <= MAX_LOGIT_DIFFERENCE
    engine.close()


@pytest.mark.parametrize("load", [open_base_model, load_base_model])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_weights_are_found_by_their_names(
    family: str, load: Callable[..., BaseModel], tmp_path: Path
) -> None:
    model = weighted_whole_model(FAMILIES[family])
    base = load(source_from_name(str(save_multimodal_model(tmp_path / "model", model))))
    assert base.whole_type == family
    assert len(base.weights) < len(model.state_dict())
    with supply_weights(base.model, base.weights):
        difference = expected_logits(base.model, TEXT) - expected_logits(model, TEXT)
    assert np.abs(difference).max() <= MAX_LOGIT_DIFFERENCE
    assert base.model.config.tie_word_embeddings == (
        model.get_output_embeddings().weight is model.get_input_embeddings().weight
    )


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_a_part_that_was_saved_is_a_model_of_text(family: str, tmp_path: Path) -> None:
    model = weighted_whole_model(FAMILIES[family])
    source = source_from_name(str(save_multimodal_model(tmp_path / "model", model)))
    save_model(load_model(source, "auto"), tmp_path / "text", medusa_num_heads=3)
    make_byte_tokenizer().save_pretrained(tmp_path / "text")
    base = load_base_model(source_from_name(str(tmp_path / "text")))
    assert base.whole_type is None
    difference = expected_logits(base.model, TEXT) - expected_logits(model, TEXT)
    assert np.abs(difference).max() <= MAX_LOGIT_DIFFERENCE


def test_experts_that_are_joined_in_memory_come_without_the_other_parts(tmp_path: Path) -> None:
    mixtral = {"model_type": "mixtral", "num_local_experts": 4, "sliding_window": None}
    model = weighted_whole_model(config("llava", text_config=mixtral, vision_config=CLIP))
    base = open_base_model(source_from_name(str(save_multimodal_model(tmp_path / "m", model))))
    assert len(list(base.model.parameters())) < len(list(model.parameters()))
    difference = expected_logits(base.model, TEXT) - expected_logits(model, TEXT)
    assert np.abs(difference).max() <= MAX_LOGIT_DIFFERENCE


def test_a_part_shares_its_modules_with_the_whole() -> None:
    part = take_text_part(weighted_whole_model(FAMILIES["llava"]))
    assert part.map_modules()["model.language_model.layers.0"] == "model.layers.0"
    assert part.model.get_output_embeddings() is part.whole.get_output_embeddings()
    assert not any(parameter.is_meta for parameter in part.model.parameters())


REFUSED = {
    "gemma3 models compute a text otherwise than their language model": config(
        "gemma3", text_config={"final_logit_softcapping": 10.0}
    ),
    "cohere2 models with a rotary embedding other than of halves": config(
        "cohere2_vision", text_config={"model_type": "cohere2"}
    ),
    "clip models have several kinds of input, and transformers has no": AutoConfig.for_model(
        "clip"
    ),
    "the language model of perception_lm models does not run alone": AutoConfig.for_model(
        "perception_lm"
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_other_models_are_refused_by_name(message: str) -> None:
    with pytest.raises(ExportError, match=rf"^{message}[^\n]*$"):
        make_text_part(REFUSED[message])


def test_an_encoder_of_timm_is_not_made() -> None:
    """Gemma 3n comes as far as any other model whose attention is not supported."""
    text = {"num_hidden_layers": 4, "num_kv_shared_layers": 0, "laurel_rank": 8}
    part = make_text_part(config("gemma3n", text_config=text))
    assert part.model.config.model_type == "gemma3n_text"
    assert type(part.whole.get_submodule("model.vision_tower")).__name__ == "CLIPVisionModel"


def test_the_check_leaves_the_config_as_it_was() -> None:
    llava = FAMILIES["llava"]
    before = llava.to_dict()
    part = make_text_part(llava)
    assert llava.to_dict() | {"dtype": None} == before | {"dtype": None}
    assert part.model.config.vocab_size == VOCAB_SIZE
    assert all(parameter.is_meta for parameter in part.whole.parameters())
    assert part.model.dtype == torch.float32
