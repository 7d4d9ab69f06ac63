"""Small models and heads with random weights, in the layouts that users bring."""

import copy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import LlamaConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

VOCAB_SIZE = 300
HIDDEN_SIZE = 64
EOS_ID = 257
TINY_HEADS = "medusa_lm_head.safetensors"

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def llama_config(**changes: object) -> LlamaConfig:
    """Config of a Llama with two layers, four attention heads and two key-value heads."""
    values: dict[str, Any] = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": HIDDEN_SIZE,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": 256,
        "eos_token_id": EOS_ID,
        "initializer_range": 0.2,
    }
    return LlamaConfig(**(values | changes))


def random_model(config: PretrainedConfig, seed: int = 0) -> PreTrainedModel:
    """Makes a model with random weights, which are large enough that logits never tie.

    The model has a config of its own: a test that changes it changes no other test's.
    """
    torch.manual_seed(seed)
    own_config = copy.deepcopy(config)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(own_config, dtype=torch.float32)
    model.eval()
    return model


def make_byte_tokenizer() -> PreTrainedTokenizerFast:
    """Makes a tokenizer with one token for each byte, a start and an end token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {symbol: index for index, symbol in enumerate(alphabet)} | {"<s>": 256, "</s>": EOS_ID}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.chat_template = CHAT_TEMPLATE
    return fast


def save_tiny_model(folder: Path, config: PretrainedConfig | None = None, seed: int = 0) -> Path:
    """Writes a random model and its tokenizer in the layout of Hugging Face."""
    random_model(config or llama_config(), seed).save_pretrained(folder)
    make_byte_tokenizer().save_pretrained(folder)
    return folder


def head_tensors(
    *,
    num_heads: int = 4,
    num_layers: int = 2,
    hidden_size: int = HIDDEN_SIZE,
    vocab_size: int | None = VOCAB_SIZE,
    seed: int = 1,
) -> dict[str, torch.Tensor]:
    """Makes random heads with the public keys.

    Without `vocab_size` the heads use the backbone's unembedding.
    """
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        values = torch.randn(*shape, generator=generator)
        return values / float(hidden_size**0.5)

    tensors = {}
    for head in range(num_heads):
        for layer in range(num_layers):
            tensors[f"{head}.{layer}.linear.weight"] = random(hidden_size, hidden_size)
            tensors[f"{head}.{layer}.linear.bias"] = random(hidden_size)
        if vocab_size is not None:
            tensors[f"{head}.{num_layers}.weight"] = random(vocab_size, hidden_size)
    return tensors


def save_tiny_heads(path: Path, tensors: dict[str, torch.Tensor] | None = None) -> Path:
    """Writes heads to a safetensors file."""
    save_file(head_tensors() if tensors is None else tensors, path)
    return path


def sentencepiece_tokenizer() -> Tokenizer:
    """Llama 2's kind: metaspaces, bytes as a fallback, tokens of several characters."""
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    pieces = [*'▁{}[]":,.-0123456789eabckoptrufalsn', '":', '▁"', "▁▁", "tr", "ue", '"po', "é"]
    vocab = {piece: index for index, piece in enumerate(["<unk>", "<s>", "</s>", *bytes_, *pieces])}
    merges = [('"', ":"), ("▁", '"'), ("▁", "▁"), ("t", "r"), ("u", "e")]
    model = models.BPE(vocab=vocab, merges=merges, byte_fallback=True, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding()
    return tokenizer
