"""Writes a GGUF file in float16 with random weights, in the shape of a Llama or a Qwen3."""

from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
from transformers import PretrainedConfig

from medusa_trt.errors import MedusaError
from medusa_trt.export.models.random_weights import make_byte_tokenizer

_ARCHITECTURES = {"llama": gguf.MODEL_ARCH.LLAMA, "qwen3": gguf.MODEL_ARCH.QWEN3}
_PERIOD = 1_000_003
"""Random numbers that are drawn, then repeated; a prime, so that no two rows are equal."""

_SCALE, _STEP = 0.02, 1009


def write_random_gguf(path: Path, config: PretrainedConfig) -> None:
    """Writes the file tensor by tensor, so that no shape is too large for the memory.

    Raises:
        MedusaError: the architecture is neither Llama nor Qwen3.
    """
    if config.model_type not in _ARCHITECTURES:
        raise MedusaError(
            f"no GGUF file is written for {config.model_type}: take one of "
            f"{', '.join(_ARCHITECTURES)}"
        )
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[_ARCHITECTURES[config.model_type]])
    _add_config(writer, config)
    _add_tokenizer(writer, config.vocab_size)
    shapes = dict(_list_tensors(config))
    for name, shape in shapes.items():
        dtype = np.dtype(np.float32 if len(shape) == 1 else np.float16)
        num_bytes = int(np.prod(shape)) * dtype.itemsize
        writer.add_tensor_info(name, shape, dtype, num_bytes)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    rng = np.random.default_rng(0)
    numbers = (_SCALE * rng.standard_normal(_PERIOD, np.float32)).astype(np.float16)
    for index, shape in enumerate(shapes.values()):
        is_vector = len(shape) == 1
        # Equal matrices would be stored once by OpenVINO, and stay in the processor's cache.
        values = np.resize(np.roll(numbers, index * _STEP), shape)
        writer.write_tensor_data(np.ones(shape, np.float32) if is_vector else values)
    writer.close()


def _add_config(writer: gguf.GGUFWriter, config: PretrainedConfig) -> None:
    writer.add_name("random")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(_head_size(config))
    writer.add_key_length(_head_size(config))
    writer.add_value_length(_head_size(config))
    writer.add_vocab_size(config.vocab_size)


def _add_tokenizer(writer: gguf.GGUFWriter, vocab_size: int) -> None:
    """Adds a token for each byte; the rest of the vocabulary is never made from a text."""
    vocab = make_byte_tokenizer().get_vocab()
    tokens = sorted(vocab, key=lambda token: vocab[token])
    end = tokens.index("</s>")
    normal, unused = gguf.TokenType.NORMAL, gguf.TokenType.UNUSED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    others = [f"<unused {index}>" for index in range(len(tokens), vocab_size)]
    writer.add_token_list(tokens + others)
    types = [normal] * len(tokens) + [unused] * (vocab_size - len(tokens))
    types[end] = gguf.TokenType.CONTROL
    writer.add_token_types(types)
    writer.add_token_merges([f"{tokens[0]} {tokens[1]}"])
    for add in (writer.add_bos_token_id, writer.add_eos_token_id, writer.add_pad_token_id):
        add(end)


def _list_tensors(config: PretrainedConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of all tensors, outputs first."""
    hidden, inner = config.hidden_size, config.intermediate_size
    size = _head_size(config)
    queries, keys = config.num_attention_heads * size, config.num_key_value_heads * size
    yield "token_embd.weight", (config.vocab_size, hidden)
    for layer in range(config.num_hidden_layers):
        shapes: dict[str, tuple[int, ...]] = {
            "attn_norm": (hidden,),
            "attn_q": (queries, hidden),
            "attn_k": (keys, hidden),
            "attn_v": (keys, hidden),
            "attn_output": (hidden, queries),
            "ffn_norm": (hidden,),
            "ffn_gate": (inner, hidden),
            "ffn_up": (inner, hidden),
            "ffn_down": (hidden, inner),
        }
        if config.model_type == "qwen3":
            shapes |= {"attn_q_norm": (size,), "attn_k_norm": (size,)}
        for name, shape in shapes.items():
            yield f"blk.{layer}.{name}.weight", shape
    yield "output_norm.weight", (hidden,)
    if not config.tie_word_embeddings:
        yield "output.weight", (config.vocab_size, hidden)


def _head_size(config: PretrainedConfig) -> int:
    size = getattr(config, "head_dim", None)
    return int(size or config.hidden_size // config.num_attention_heads)
