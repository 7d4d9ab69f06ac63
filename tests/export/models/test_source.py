"""Where a model comes from, by what a user calls it, and which kinds are refused."""

from pathlib import Path

import pytest
from support.checkpoints.changed_model import changed_model
from support.checkpoints.multimodal_families import FAMILIES
from support.tiny_models import EOS_ID, save_tiny_model
from transformers import AutoConfig

from medusa_trt.errors import ExportError
from medusa_trt.export.models.source import load_config, source_from_name


def test_a_saved_model_folder_is_named_after_itself(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "my-model")
    assert source_from_name(str(folder)).name == "my-model"
    assert source_from_name("owner/name").location == "owner/name"


def test_code_that_comes_with_a_model_is_not_run_and_not_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    harm = tmp_path / "harm"
    folder = changed_model(
        tmp_path / "model",
        lambda _: None,
        model_type="own",
        auto_map={"AutoConfig": "code.OwnConfig", "AutoModelForCausalLM": "code.OwnModel"},
    )
    (folder / "code.py").write_text(f"import os\nos.mkdir({str(harm)!r})\n")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(ExportError, match="it brings Python code of its own, which is not run"):
        load_config(source_from_name(str(folder)))
    assert not harm.exists()


@pytest.mark.parametrize(
    ("model_type", "message"),
    [
        ("t5", "t5 models have an encoder: only decoders are supported"),
        ("bart", "bart models have an encoder"),
    ],
)
def test_an_encoder_is_refused_by_name(model_type: str, message: str, tmp_path: Path) -> None:
    AutoConfig.for_model(model_type).save_pretrained(tmp_path)
    with pytest.raises(ExportError, match=message):
        load_config(source_from_name(str(tmp_path)))


def test_the_config_of_a_text_part_has_what_the_whole_one_says_for_it(tmp_path: Path) -> None:
    FAMILIES["llava"].save_pretrained(tmp_path)
    config = load_config(source_from_name(str(tmp_path)))
    assert config.model_type == "llama"
    assert config.eos_token_id == EOS_ID
