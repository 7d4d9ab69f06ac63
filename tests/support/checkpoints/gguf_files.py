"""GGUF files of tiny Llama models, with blocks of 32 weights packed by hand."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from numpy.typing import NDArray
from support.tiny_models import CHAT_TEMPLATE, EOS_ID, make_byte_tokenizer
from transformers import PreTrainedModel

BLOCK = 32
Floats = NDArray[np.float32]
Codes = NDArray[np.int8]
Packed = tuple[NDArray[np.uint8], Codes, NDArray[np.float16]]
"""Bytes (N, K / 32 * size), codes (N, K) and scales (N, K / 32)."""

_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_OTHERS = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def nibbles(codes: NDArray[np.integer]) -> NDArray[np.uint8]:
    """(blocks, 32) of 0 to 15: the first 16 at the low ends of 16 bytes."""
    pairs: NDArray[np.uint8] = (codes[:, :16] | codes[:, 16:] << 4).astype(np.uint8)
    return pairs


def q4_0(weight: Floats) -> Packed:
    """The value of the largest magnitude has code -8, whichever its sign."""
    blocks = weight.reshape(-1, BLOCK)
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(-1)[:, None], -1)
    scales = (largest / -8).astype(np.float16)
    codes = np.rint(blocks / scales.astype(np.float32)).clip(-8, 7).astype(np.int8)
    data = np.concatenate([scales.view(np.uint8), nibbles(codes + 8)], -1)
    rows = len(weight)
    return data.reshape(rows, -1), codes.reshape(rows, -1), scales.reshape(rows, -1)


def q4_1(weight: Floats) -> Packed:
    """A scale and a least value for each block."""
    blocks = weight.reshape(-1, BLOCK)
    least = blocks.min(-1, keepdims=True).astype(np.float16)
    scales = (np.ptp(blocks, -1)[:, None] / 15).astype(np.float16)
    codes = np.rint((blocks - least) / scales).clip(0, 15).astype(np.int8)
    data = np.concatenate([scales.view(np.uint8), least.view(np.uint8), nibbles(codes)], -1)
    rows = len(weight)
    return data.reshape(rows, -1), codes.reshape(rows, -1), scales.reshape(rows, -1)


PACKINGS: dict[str, Callable[[Floats], Packed]] = {"Q4_0": q4_0, "Q4_1": q4_1}


def write_gguf(
    path: Path,
    model: PreTrainedModel,
    kind: str,
    add: Callable[[GGUFWriter], None] = lambda _: None,
    tensors_in_part: int = 0,
) -> list[tuple[Codes, Floats]]:
    """Writes a Llama whose layers' products are quantized; their codes and scales.

    `add` may write further fields and tensors. With `tensors_in_part` several files are written,
    named as llama.cpp names the parts of a model.
    """
    writer = GGUFWriter(path, "llama", split_max_tensors=tensors_in_part)
    config = model.config
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    _add_tokenizer(writer, config.vocab_size)
    add(writer)
    written = []
    for name, parameter in model.state_dict().items():
        array = parameter.numpy()
        if name in _OTHERS:
            writer.add_tensor(_OTHERS[name], array)
            continue
        _, _, layer, rest = name.split(".", 3)
        gguf_name = f"blk.{layer}.{_NAMES[rest.removesuffix('.weight')]}.weight"
        if array.ndim == 1:
            writer.add_tensor(gguf_name, array)
            continue
        data, codes, scales = PACKINGS[kind](array)
        writer.add_tensor(gguf_name, data, raw_dtype=GGMLQuantizationType[kind])
        written.append((codes, scales.astype(np.float32)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return written


def _add_tokenizer(writer: GGUFWriter, vocab_size: int) -> None:
    """One token a byte, and names for those that there are no bytes for."""
    vocab = make_byte_tokenizer().get_vocab()
    by_id = {index: token for token, index in vocab.items()} | {len(vocab): "ab"}
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([by_id.get(index, f"<unused{index}>") for index in range(vocab_size)])
    writer.add_token_types([1] * vocab_size)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(EOS_ID)
    writer.add_chat_template(CHAT_TEMPLATE)
