"""Models and heads of a real shape with random weights: to build and time what cannot be loaded."""

import copy
import json
from importlib import resources
from pathlib import Path

import torch
from accelerate import init_empty_weights
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from medusa_trt.errors import ExportError
from medusa_trt.export.base_model import BaseModel, ModelSource, quiet_transformers
from medusa_trt.export.heads import Linear, MedusaHead, MedusaHeads
from medusa_trt.export.streamed_model import weights_in_memory
from medusa_trt.export.support import refuse_unsupported

NUM_HEADS = 4
_PERIOD = 1_000_003
"""Random numbers that are drawn; a prime, so that no two rows of a matrix are equal."""

_SCALE = 0.02
_PROBE_VOCAB, _PROBE_LENGTH = 64, 1024


def shapes() -> dict[str, dict[str, object]]:
    """Configs of known models by name, in transformers' terms."""
    text = (resources.files("medusa_trt.export") / "model_shapes.json").read_text("utf-8")
    found: dict[str, dict[str, object]] = json.loads(text)
    return found


def config_from_name(name: str, num_layers: int | None) -> PretrainedConfig:
    """The config of a known shape or of a folder, optionally cut to fewer layers.

    Raises:
        ExportError: there is no such shape or config, or it has not as many layers.
    """
    known = shapes()
    if name in known:
        values = dict(known[name])
        config = AutoConfig.for_model(str(values.pop("model_type")), **values)
    elif (Path(name) / "config.json").is_file():
        config = AutoConfig.from_pretrained(name)
    else:
        raise ExportError(
            f"no shape is known for {name!r}: give one of {', '.join(known)} or a folder with a "
            "config.json"
        )
    if num_layers is not None:
        if not 1 <= num_layers <= config.num_hidden_layers:
            raise ExportError(f"--layers is {num_layers}: {name} has {config.num_hidden_layers}")
        config = _cut(config, num_layers)
    return config


def random_base_model(name: str, num_layers: int | None, dtype: torch.dtype) -> BaseModel:
    """A model with random weights in the type that it will compute in, with a byte tokenizer.

    Raises:
        ExportError: the shape is unknown or not supported.
    """
    config = config_from_name(name, num_layers)
    probe = _cut(config, 1)
    probe.vocab_size = _PROBE_VOCAB
    probe.pad_token_id = None
    refuse_unsupported(random_model(probe, torch.float32), _PROBE_LENGTH)
    cut = "" if num_layers is None else f"-{num_layers}-layers"
    source = ModelSource(f"{Path(name).name}{cut}-random", name)
    model = random_model(config, dtype)
    return BaseModel(source, model, byte_tokenizer(), weights_in_memory(model))


def random_model(config: PretrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """Random matrices; vectors (norms' weights) are ones."""
    with quiet_transformers(), init_empty_weights(include_buffers=False):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    numbers = (_SCALE * torch.randn(_PERIOD, generator=torch.Generator().manual_seed(0))).to(dtype)
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                filled = _filled(parameter.shape, numbers)
                module._parameters[name] = nn.Parameter(filled, requires_grad=False)
    model.tie_weights()
    model.eval()
    return model


def random_heads(config: PretrainedConfig, dtype: torch.dtype) -> MedusaHeads:
    """Heads as the published ones: one block and an unembedding of their own."""
    numbers = (_SCALE * torch.randn(_PERIOD, generator=torch.Generator().manual_seed(1))).to(dtype)
    hidden, vocab = config.hidden_size, config.vocab_size
    return MedusaHeads(
        tuple(
            MedusaHead(
                (Linear(_filled((hidden, hidden), numbers.roll(head)), None),),
                unembedding=_filled((vocab, hidden), numbers.roll(head)),
            )
            for head in range(NUM_HEADS)
        )
    )


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, and an end token: stands in for a tokenizer that is not at hand."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {symbol: index for index, symbol in enumerate(alphabet)} | {"</s>": len(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


def _cut(config: PretrainedConfig, num_layers: int) -> PretrainedConfig:
    config = copy.deepcopy(config)
    config.num_hidden_layers = num_layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:num_layers]
    return config


def _filled(shape: tuple[int, ...] | torch.Size, numbers: torch.Tensor) -> torch.Tensor:
    """The numbers over and over; ones for a vector."""
    tensor = torch.ones(shape, dtype=numbers.dtype)
    if tensor.ndim > 1:
        for piece in tensor.view(-1).split(len(numbers)):
            piece.copy_(numbers[: len(piece)])
    return tensor
