"""Names of tensors in checkpoints, of today and of older releases, and their places in the part."""

import pytest
from support.checkpoints.multimodal_families import FAMILIES
from support.tiny_models import llama_config

from medusa_trt.export.models.multimodal.stored_names import StoredNames
from medusa_trt.export.models.multimodal.text_part import make_text_part

QUERY = "layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("family", "stored"),
    [
        ("llava", f"language_model.model.{QUERY}"),
        ("llava", f"model.language_model.{QUERY}"),
        ("qwen2_vl", f"model.{QUERY}"),
        ("qwen2_vl", f"model.language_model.{QUERY}"),
        ("smolvlm", f"model.text_model.{QUERY}"),
        ("gemma3", f"language_model.model.{QUERY}"),
        ("internvl", f"language_model.model.{QUERY}"),
    ],
)
def test_a_name_leads_to_the_same_parameter(family: str, stored: str) -> None:
    names = StoredNames(make_text_part(FAMILIES[family]))
    assert names.find(stored) == (f"model.{QUERY}", False)


def test_what_belongs_to_another_part_has_no_place() -> None:
    names = StoredNames(make_text_part(FAMILIES["llava"]))
    for name in ("vision_tower.vision_model.post_layernorm.weight", "multi_modal_projector.x.bias"):
        assert names.find(name).name is None
    assert names.find("language_model.lm_head.weight").name == "lm_head.weight"
    unknown = "language_model.model.layers.0.self_attn.q_proj.scale"
    assert names.find(unknown).name == "model.layers.0.self_attn.q_proj.scale"


def test_a_model_of_text_is_its_own_part() -> None:
    names = StoredNames(make_text_part(llama_config()))
    for name in (f"model.{QUERY}", "lm_head.weight", "vision.bias", "x"):
        assert names.find(name) == (name, False)
