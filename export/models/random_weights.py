"""Models and heads of a real shape with random weights: to build and time what cannot be loaded."""

import copy
from functools import partial
from importlib import resources
from pathlib import Path

import msgspec
import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from medusa_trt.errors import ExportError
from medusa_trt.export.heads.medusa_heads import Linear, MedusaHead, MedusaHeads
from medusa_trt.export.modeling.support import refuse_unsupported
from medusa_trt.export.models.base_model import BaseModel
from medusa_trt.export.models.source import ModelSource, load_config, silence_transformers
from medusa_trt.export.weights.lazy_tensor import Array, LazyTensor
from medusa_trt.export.weights.streamed_model import (
    Weights,
    array_from_tensor,
    make_empty_model,
    supply_weights,
)

NUM_HEADS = 4
_PERIOD = 1_000_003
"""Random numbers that are drawn; a prime, so that no two rows of a matrix are equal."""

_SCALE = 0.02
_PROBE_VOCAB, _PROBE_LENGTH = 64, 1024


def load_shapes() -> dict[str, dict[str, object]]:
    """Loads the configs of known models by name, in transformers' terms."""
    file = resources.files("medusa_trt.export.models.shipped") / "model_shapes.json"
    return msgspec.json.decode(file.read_bytes(), type=dict[str, dict[str, object]])


def config_from_name(name: str, num_layers: int | None) -> PretrainedConfig:
    """Makes the config of a known shape or of a config.json, optionally cut to fewer layers.

    Args:
        name: name of the shape, or path of a config.json or of its folder.
        num_layers: how many layers to keep; None for all.

    Raises:
        ExportError: there is no such shape or config, or it has not as many layers.
    """
    known = load_shapes()
    folder = _find_folder(name)
    if name in known:
        values = dict(known[name])
        config = AutoConfig.for_model(str(values.pop("model_type")), **values)
    elif (folder / "config.json").is_file():
        config = load_config(ModelSource(name, str(folder)))
    else:
        raise ExportError(
            f"no shape is known for {name!r}: give one of {', '.join(known)} or a config.json"
        )
    if num_layers is not None:
        if not 1 <= num_layers <= config.num_hidden_layers:
            raise ExportError(f"--layers is {num_layers}: {name} has {config.num_hidden_layers}")
        config = _cut_layers(config, num_layers)
    return config


def _find_folder(name: str) -> Path:
    """Gives the folder of a config.json that may be named itself."""
    path = Path(name)
    return path.parent if path.name == "config.json" else path


def random_base_model(name: str, num_layers: int | None, dtype: torch.dtype) -> BaseModel:
    """Makes a model with random weights in the type that it will compute in, with a byte tokenizer.

    The weights are made when they are used: no model is too large.

    Raises:
        ExportError: the shape is unknown or not supported.
    """
    config = config_from_name(name, num_layers)
    probe = _cut_layers(config, 1)
    probe.vocab_size = _PROBE_VOCAB
    probe.pad_token_id = None
    with silence_transformers():
        small, model = make_empty_model(probe), make_empty_model(config)
    with supply_weights(small, _make_weights(small, torch.float32)):
        refuse_unsupported(small, _PROBE_LENGTH)
    cut = "" if num_layers is None else f"-{num_layers}-layers"
    source = ModelSource(f"{_find_folder(name).resolve().name}{cut}-random", name)
    return BaseModel(source, model, make_byte_tokenizer(), _make_weights(model, dtype))


def random_heads(config: PretrainedConfig, dtype: torch.dtype) -> MedusaHeads:
    """Makes heads as the published ones: a block and an unembedding each."""
    hidden, vocab = config.hidden_size, config.vocab_size
    numbers = [_draw_numbers(1 + head, dtype) for head in range(NUM_HEADS)]
    sizes = {"block0": (hidden, hidden), "unembedding": (vocab, hidden)}

    def empty(name: str) -> torch.Tensor:
        return torch.empty(sizes[name], dtype=dtype, device="meta")

    return MedusaHeads(
        tuple(
            MedusaHead((Linear(empty("block0")),), unembedding=empty("unembedding"))
            for _ in numbers
        ),
        unread={
            name: tuple(
                _make_tensor(f"head {head} {name}", shape, values)
                for head, values in enumerate(numbers)
            )
            for name, shape in sizes.items()
        },
    )


def _make_weights(model: PreTrainedModel, dtype: torch.dtype) -> Weights:
    numbers = _draw_numbers(0, dtype)
    first_names: dict[int, str] = {}
    return {
        name: _make_tensor(
            first_names.setdefault(id(parameter), name), tuple(parameter.shape), numbers
        )
        for name, parameter in model.named_parameters(remove_duplicate=False)
    }


def _make_tensor(key: str, shape: tuple[int, ...], numbers: Array) -> LazyTensor:
    """Repeats the numbers over a matrix; a vector gets ones."""
    ones, repeated = partial(np.ones, shape, numbers.dtype), partial(np.resize, numbers, shape)
    return LazyTensor(ones if len(shape) == 1 else repeated, shape, ("random", key))


def _draw_numbers(seed: int, dtype: torch.dtype) -> Array:
    generator = torch.Generator().manual_seed(seed)
    return array_from_tensor((_SCALE * torch.randn(_PERIOD, generator=generator)).to(dtype))


def make_byte_tokenizer() -> PreTrainedTokenizerFast:
    """Makes a tokenizer of one token a byte and an end token, where no other is at hand."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {symbol: index for index, symbol in enumerate(alphabet)} | {"</s>": len(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


def _cut_layers(config: PretrainedConfig, num_layers: int) -> PretrainedConfig:
    config = copy.deepcopy(config)
    config.num_hidden_layers = num_layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:num_layers]
    return config
