"""What GGUF files say of rotations, windows and sizes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFValueType, GGUFWriter
from support.checkpoints.gguf_files import write_gguf
from support.model_families import config, rope
from support.tiny_models import llama_config, random_model
from transformers import PretrainedConfig

from medusa_trt.errors import ExportError
from medusa_trt.export.models.base_model import load_base_model, open_base_model
from medusa_trt.export.models.gguf import read_gguf
from medusa_trt.export.models.gguf_config import complete_config
from medusa_trt.export.models.source import source_from_name
from medusa_trt.export.weights.streamed_model import supply_weights

TOKENS = torch.arange(40)[None] * 7
Add = Callable[[GGUFWriter], None]
UINT32 = GGUFValueType.UINT32

LLAMA3 = rope(
    "llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=32,
)


def llama3_factors() -> np.ndarray:
    """As llama.cpp writes them: by how much each frequency is divided."""
    scaled = random_model(LLAMA3).model.rotary_emb.inv_freq
    factors: np.ndarray = (random_model(llama_config()).model.rotary_emb.inv_freq / scaled).numpy()
    return factors.astype(np.float32)


def with_scaling(kind: str, factor: float, length: int) -> Add:
    def add(writer: GGUFWriter) -> None:
        writer.add_string("llama.rope.scaling.type", kind)
        writer.add_rope_scaling_factor(factor)
        writer.add_rope_scaling_orig_ctx_len(length)

    return add


ROTATIONS: dict[str, tuple[Add, PretrainedConfig]] = {
    "factors": (lambda writer: writer.add_tensor("rope_freqs.weight", llama3_factors()), LLAMA3),
    "linear": (with_scaling("linear", 4.0, 32), rope("linear")),
    "yarn": (with_scaling("yarn", 4.0, 32), rope("yarn", original_max_position_embeddings=32)),
    "base": (lambda writer: writer.add_rope_dimension_count(16), rope("linear", factor=1.0)),
    "none": (lambda writer: None, config("llama")),
}


@pytest.mark.parametrize("is_large", [False, True])
@pytest.mark.parametrize("name", ROTATIONS)
def test_rotations_are_those_of_the_file(
    name: str, is_large: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add, expected_config = ROTATIONS[name]
    path = tmp_path / "tiny.gguf"
    write_gguf(path, random_model(llama_config()), "Q4_0", add)
    if is_large:
        monkeypatch.setattr("medusa_trt.export.models.base_model.STREAMED_GGUF_BYTES", 1)
    source = source_from_name(str(path))
    base = open_base_model(source)
    assert all(parameter.is_meta == is_large for parameter in base.model.parameters())
    expected = random_model(expected_config)
    expected.load_state_dict(load_base_model(source).model.state_dict())
    with torch.no_grad(), supply_weights(base.model, base.weights):
        assert torch.allclose(base.model(TOKENS).logits, expected(TOKENS).logits, atol=1e-4)


@pytest.mark.parametrize(
    ("add", "message"),
    [
        (lambda writer: writer.add_logit_scale(0.5), "logit_scale = 0.5, which is not read"),
        (lambda writer: writer.add_sliding_window(8), "attention.sliding_window = 8"),
        (with_scaling("longrope", 4.0, 32), "rope.scaling.type = 'longrope'"),
        (
            lambda writer: writer.add_tensor("blk.0.attn_q.bias", np.ones(64, np.float32)),
            "has blk.0.attn_q.bias, which a llama model in transformers does not have",
        ),
    ],
)
def test_what_would_be_left_out_is_refused(add: Add, message: str, tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path, random_model(llama_config()), "Q4_0", add)
    with pytest.raises(ExportError, match=message):
        open_base_model(source_from_name(str(path)))


@pytest.mark.parametrize(
    ("add", "expected"),
    [
        (lambda writer: None, [257]),
        (lambda writer: writer.add_eot_token_id(40), [40, 257]),
        (lambda writer: writer.add_key_value("tokenizer.ggml.eom_token_id", 41, UINT32), [41, 257]),
    ],
)
def test_replies_end_at_the_tokens_of_the_file_alone(
    add: Add, expected: list[int], tmp_path: Path
) -> None:
    """Not at token 2, which Llama's config class has by default."""
    path = tmp_path / "tiny.gguf"
    write_gguf(path, random_model(llama_config()), "Q4_0", add)
    base = open_base_model(source_from_name(str(path)))
    assert base.eos_token_ids == expected
    assert base.model.config.bos_token_id == 256


def completed(tmp_path: Path, architecture: str, own: PretrainedConfig, add: Add) -> None:
    path = tmp_path / "facts.gguf"
    writer = GGUFWriter(path, architecture)
    add(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    complete_config(own, read_gguf(path))


def test_starcoders_base_and_heads(tmp_path: Path) -> None:
    def add(writer: GGUFWriter) -> None:
        writer.add_rope_freq_base(999999.0)
        writer.add_head_count_kv(1)
        writer.add_sliding_window(64)

    own = config("starcoder2", sliding_window=None)
    completed(tmp_path, "starcoder2", own, add)
    assert own.rope_parameters["rope_theta"] == 999999.0
    assert (own.num_key_value_heads, own.sliding_window) == (1, 64)


def test_phis_longrope_and_rotated_part(tmp_path: Path) -> None:
    short, long = np.arange(1, 7, dtype=np.float32), np.arange(2, 8, dtype=np.float32)

    def add(writer: GGUFWriter) -> None:
        writer.add_rope_dimension_count(12)
        writer.add_rope_scaling_orig_ctx_len(128)
        writer.add_rope_scaling_attn_factors(1.25)
        writer.add_sliding_window(512)  # as long as the longest sequence: none
        writer.add_tensor("rope_factors_short.weight", short)
        writer.add_tensor("rope_factors_long.weight", long)

    own = config("phi3", sliding_window=None)
    completed(tmp_path, "phi3", own, add)
    found = own.rope_parameters
    assert (found["rope_type"], found["partial_rotary_factor"]) == ("longrope", 0.75)
    assert found["short_factor"] == short.tolist() and found["long_factor"] == long.tolist()
    assert (found["original_max_position_embeddings"], found["attention_factor"]) == (128, 1.25)
    assert own.original_max_position_embeddings == 128 and own.sliding_window is None


def test_gemmas_scaling_is_for_the_layers_that_see_everything(tmp_path: Path) -> None:
    def add(writer: GGUFWriter) -> None:
        writer.add_string("gemma3.rope.scaling.type", "linear")
        writer.add_rope_scaling_factor(8.0)

    own = config("gemma3_text", num_hidden_layers=62, hidden_size=48, head_dim=16)
    completed(tmp_path, "gemma3", own, add)
    assert own.rope_parameters["full_attention"]["rope_type"] == "linear"
    assert own.rope_parameters["full_attention"]["factor"] == 8.0
    assert own.rope_parameters["sliding_attention"]["rope_type"] == "default"
    assert own.query_pre_attn_scalar == 48 // 4


def test_other_architectures_are_left_to_transformers(tmp_path: Path) -> None:
    own = config("nemotron")
    before = own.to_dict()
    completed(tmp_path, "nemotron", own, lambda writer: writer.add_logit_scale(2.0))
    assert own.to_dict() == before
