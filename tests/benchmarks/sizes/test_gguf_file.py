"""GGUF files with random weights."""

from pathlib import Path

import gguf
import numpy as np
import pytest
from sizes.gguf_file import write_random_gguf
from transformers import LlamaConfig, Qwen3Config
from transformers.models.gpt2 import GPT2Config

from medusa_trt.errors import MedusaError

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 300,
}


@pytest.mark.parametrize("kind", [LlamaConfig, Qwen3Config])
@pytest.mark.parametrize("is_tied", [True, False])
def test_a_file_has_the_tensors_of_its_shape(kind: type, is_tied: bool, tmp_path: Path) -> None:
    write_random_gguf(tmp_path / "a.gguf", kind(**SIZES, tie_word_embeddings=is_tied))
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    shapes = {tensor.name: tuple(map(int, reversed(tensor.shape))) for tensor in reader.tensors}
    assert ("output.weight" in shapes) != is_tied
    assert shapes["token_embd.weight"] == (300, 32)
    assert shapes["blk.1.attn_q.weight"] == (64, 32) and shapes["blk.1.attn_k.weight"] == (32, 32)
    assert shapes["blk.0.ffn_down.weight"] == (32, 48)
    assert ("blk.0.attn_q_norm.weight" in shapes) == (kind is Qwen3Config)
    assert len(reader.fields["tokenizer.ggml.tokens"].data) == 300
    matrices = {tensor.name: tensor.data for tensor in reader.tensors if len(tensor.shape) > 1}
    assert 0.01 < np.std(matrices["token_embd.weight"].astype(np.float32)) < 0.03
    for layer in (0, 1):
        up, gate = (matrices[f"blk.{layer}.ffn_{name}.weight"] for name in ("up", "gate"))
        assert not np.array_equal(up, gate), "equal matrices may be stored once"


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MedusaError, match=r"gpt2.*llama, qwen3"):
        write_random_gguf(tmp_path / "a.gguf", GPT2Config())
