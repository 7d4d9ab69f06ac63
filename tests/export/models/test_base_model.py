"""Models that are loaded, opened and written: what the config says of them, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.checkpoints.changed_model import TOKENS, changed_model, in_eight_bits
from support.tiny_models import EOS_ID, llama_config, random_model, save_tiny_model
from transformers import AutoModelForCausalLM, GenerationConfig

from medusa_trt.errors import ExportError
from medusa_trt.export.models.base_model import load_base_model, open_base_model, save_model
from medusa_trt.export.models.source import source_from_name
from medusa_trt.export.pipeline import ExportOptions, export_bundle


@pytest.mark.parametrize("load", [open_base_model, load_base_model])
def test_an_unknown_quantization_is_refused(load: Callable[[Any], object], tmp_path: Path) -> None:
    """transformers would ignore it."""
    folder = changed_model(
        tmp_path / "model",
        in_eight_bits(torch.float8_e4m3fn, 448.0),
        quantization_config={"quant_method": "modelopt", "quant_algo": "FP8"},
    )
    with pytest.raises(ExportError, match="quantized by 'modelopt' are not supported: give the"):
        load(source_from_name(str(folder)))


@pytest.mark.parametrize(
    "config",
    [
        {"rope_parameters": {"rope_type": "nonsense", "rope_theta": 1e4}},
        {"hidden_act": "nonsense"},
        {"quantization_config": {"quant_method": "spqr"}},
        {"quantization_config": [1]},
        {"vocab_size": 10**12},
    ],
)
def test_an_odd_config_is_an_error_of_one_line(config: dict[str, Any], tmp_path: Path) -> None:
    folder = changed_model(tmp_path / "model", lambda _: None, **config)
    with pytest.raises(ExportError, match=r"^cannot load model [^\n]*$"):
        open_base_model(source_from_name(str(folder)))


def test_a_generation_config_that_cannot_be_read_is_not_left_out(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model")
    (folder / "generation_config.json").write_text('{"eos_token_id": [7, 9]}')
    assert {7, 9} < set(open_base_model(source_from_name(str(folder))).eos_token_ids)
    (folder / "generation_config.json").write_text('{"eos_token_id"')
    with pytest.raises(ExportError, match="not a valid JSON file"):
        open_base_model(source_from_name(str(folder)))
    (folder / "generation_config.json").unlink()
    open_base_model(source_from_name(str(folder)))


def test_ends_that_are_no_ids_are_found_before_the_work(tiny_heads: Path, tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model")
    (folder / "generation_config.json").write_text('{"eos_token_id": "end"}')
    said: list[str] = []
    options = ExportOptions(
        model=str(folder), heads=tiny_heads, tree="chain-2", output=tmp_path / "bundle"
    )
    with pytest.raises(ExportError, match="replies by 'end', which is not a token id: correct"):
        export_bundle(options, said.append)
    assert said[-1] == "opening model"


def test_a_model_is_written_as_transformers_reads_it(tmp_path: Path) -> None:
    """Also with a temperature without sampling, which `save_pretrained` of transformers refuses."""
    model = random_model(llama_config())
    model.generation_config = GenerationConfig(temperature=0.5, do_sample=False)
    model.config.quantization_config = {"quant_method": "gptq", "bits": 4, "group_size": 128}
    save_model(model, tmp_path, {"extra": torch.ones(3)}, medusa_num_heads=4)
    del model.config.quantization_config
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(TOKENS).logits, model(TOKENS).logits)
    assert loaded.generation_config.temperature == 0.5
    assert loaded.config.medusa_num_heads == 4 and loaded.config.eos_token_id == EOS_ID
    assert not hasattr(loaded.config, "quantization_config")
    assert load_file(tmp_path / "model.safetensors")["extra"].tolist() == [1, 1, 1]
