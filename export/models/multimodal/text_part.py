"""The language model of a checkpoint that takes several kinds of input, as a model of text alone.

A checkpoint that reads images or sound has a decoder of text, the encoders of the other inputs, and
an unembedding. Given nothing but text, it computes what its decoder and its unembedding compute.
Whether a model does so is observed, as it is not true of all.
"""

import re
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import nn
from transformers import (
    AutoModelForMultimodalLM,
    CLIPVisionConfig,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MULTIMODAL_LM_MAPPING,
    MODEL_MAPPING_NAMES,
)

from medusa_trt.errors import ExportError, MedusaError, describe_error
from medusa_trt.export.modeling.support import refuse_unsupported
from medusa_trt.export.weights.causal_decoder import DecoderForCausalLM
from medusa_trt.export.weights.streamed_model import make_empty_model, make_on_meta

_NUM_TOKENS = 16
_NUM_LAYERS, _NUM_VOCAB, _INNER_SIZE, _LENGTH = 2, 64, 16, 1024
"""Sizes of the model that is observed. Its other sizes are those of the checkpoint."""

_PAD_ID = 0
_PERIOD = 1_000_003
"""Random numbers that are drawn; a prime, so that no two rows of a matrix are equal."""

_TOLERANCE = 1e-4
"""Tolerance relative to the largest logit: both models run the same code in float32."""


@dataclass(frozen=True, slots=True)
class TextPart:
    """A language model, and the model of several inputs that it is a part of.

    Attributes:
        model: the language model; its modules are those of the whole.
        whole: the model that the checkpoint's names and values are of.
    """

    model: PreTrainedModel
    whole: PreTrainedModel

    def map_modules(self) -> dict[str, str]:
        """Names of the part's modules, by their names in the whole."""
        names = {id(module): name for name, module in self.model.named_modules()}
        return {
            name: names[id(module)]
            for name, module in self.whole.named_modules()
            if id(module) in names
        }


def is_multimodal(config: PretrainedConfig) -> bool:
    """Whether a config is of a model with a decoder of text among other parts."""
    return config.get_text_config(decoder=True) is not config


def complete_text_config(config: PretrainedConfig) -> None:
    """Tells the config of the language model what the whole config says for it."""
    text = config.get_text_config(decoder=True)
    for name in ("eos_token_id", "quantization_config"):
        if text is not config and (value := getattr(config, name, None)) is not None:
            setattr(text, name, value)


def make_text_part(config: PretrainedConfig) -> TextPart:
    """Makes the language model of a checkpoint on the meta device, or a model of text alone whole.

    Args:
        config: the checkpoint's config, of all of its parts.

    Raises:
        ExportError: transformers has no model for it, its language model is not supported, or
            computes something else than the whole model does for a text.
    """
    if not is_multimodal(config):
        model = make_empty_model(config)
        return TextPart(model, model)
    if type(config) not in MODEL_FOR_MULTIMODAL_LM_MAPPING:
        raise ExportError(
            f"{config.model_type} models have several kinds of input, and transformers has no "
            "model of them that writes text: give a model of text"
        )
    _check_text_part(config)
    return _make_empty_part(config)


def take_text_part(whole: PreTrainedModel) -> TextPart:
    """Takes the language model out of a model; the two share their modules.

    Raises:
        ExportError: the model does not say which of its modules is its decoder.
    """
    if not is_multimodal(whole.config):
        return TextPart(whole, whole)
    decoder, unembedding = whole.get_decoder(), whole.get_output_embeddings()
    if decoder is None or decoder is whole or unembedding is None:
        raise ExportError(
            f"{whole.config.model_type} models have no decoder of text that can be taken out of "
            "them: give a model of text"
        )
    model = _wrap_decoder(decoder)
    model.set_output_embeddings(unembedding)
    model.generation_config = whole.generation_config
    return TextPart(model.eval(), whole)


def _wrap_decoder(decoder: PreTrainedModel) -> PreTrainedModel:
    """Puts a decoder into the class that transformers has for it alone, or else into our own."""
    if type(decoder.config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        model = make_empty_model(decoder.config)
        for name, module in model.named_children():
            if type(module) is type(decoder):
                setattr(model, name, decoder)
                return model
    with make_on_meta():
        return DecoderForCausalLM(decoder.config, decoder)


def replace_timm(config: PretrainedConfig) -> PretrainedConfig:
    """Copies a config with another image encoder in the place of those that need timm.

    What encodes images is not used; timm would have to be installed to make it.
    """
    config = deepcopy(config)
    for name in config.sub_configs:
        encoder = getattr(config, name, None)
        if MODEL_MAPPING_NAMES.get(getattr(encoder, "model_type", "")) == "TimmWrapperModel":
            stand_in = CLIPVisionConfig()
            for key, value in vars(encoder).items():
                if not hasattr(stand_in, key):
                    setattr(stand_in, key, value)
            vars(config)[name] = stand_in  # Some configs refuse another type of encoder.
    return config


def _make_empty_part(config: PretrainedConfig) -> TextPart:
    config = replace_timm(config)
    with make_on_meta():
        whole: PreTrainedModel = AutoModelForMultimodalLM.from_config(config, dtype=torch.float32)
    whole.tie_weights()
    return take_text_part(whole.eval())


def _check_text_part(config: PretrainedConfig) -> None:
    """Refuses a model unless a small one of its kind computes the logits of its language model."""
    try:
        part = _make_empty_part(_shrink(config))
        _fill(part)
        refuse_unsupported(part.model, _LENGTH)
        expected, logits = (_compute_logits(model, config) for model in (part.whole, part.model))
    except MedusaError:
        raise
    except Exception as error:  # The model's own code may raise any exception.
        raise ExportError(
            f"the language model of {config.model_type} models does not run alone "
            f"({type(error).__name__}: {describe_error(error)}): give a model of text"
        ) from error
    difference = (logits - expected).abs().max()
    if not difference <= _TOLERANCE * expected.abs().max():  # also where a number is NaN
        raise ExportError(
            f"{config.model_type} models compute a text otherwise than their language model does "
            f"alone (logits differ by {difference:.2g}): give a model of text"
        )


def _compute_logits(model: PreTrainedModel, config: PretrainedConfig) -> torch.Tensor:
    """Computes the logits of a few tokens that have no special meaning."""
    special = {_PAD_ID}
    for key, value in vars(config).items():
        if key.endswith(("_id", "_index")):
            special.update(value if isinstance(value, list) else [value])
    ids = [token for token in range(_NUM_VOCAB) if token not in special]
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=torch.tensor([ids[: 2 * _NUM_TOKENS : 2]])).logits
    return logits


def _shrink(config: PretrainedConfig) -> PretrainedConfig:
    """Copies a config with few layers and tokens, and with small sizes inside of its layers."""
    config = deepcopy(config)
    text = config.get_text_config(decoder=True)
    num_layers, kept = text.num_hidden_layers, min(_NUM_LAYERS, text.num_hidden_layers)
    for name, value in list(vars(text).items()):
        small = value
        if isinstance(value, list) and len(value) == num_layers:
            small = value[:kept]
        if name.endswith("intermediate_size") and value is not None:
            small = [_INNER_SIZE] * kept if isinstance(value, list) else _INNER_SIZE
        elif re.fullmatch("num_(?!hidden_).+_layers", name) and value is not None:
            small = 0  # Layers at the end that differ, such as those without keys of their own.
        if small != value:
            setattr(text, name, small)
    text.num_hidden_layers, text.vocab_size = kept, _NUM_VOCAB
    for owner in (config, text):
        if getattr(owner, "pad_token_id", None) is not None:
            owner.pad_token_id = _PAD_ID
    return config


def _fill(part: TextPart) -> None:
    """Gives random weights to the language model, and NaN to all other parameters."""
    pool = torch.randn(_PERIOD, generator=torch.Generator().manual_seed(0))
    text_modules = {id(module) for module in part.model.modules()}
    filled: dict[int, nn.Parameter] = {}
    for module in part.whole.modules():
        for key, parameter in module._parameters.items():
            if parameter is None:
                continue
            if id(parameter) not in filled:
                values = torch.full((), torch.nan).expand(parameter.shape)
                if id(module) in text_modules:
                    values = _repeat(pool, parameter.shape)
                filled[id(parameter)] = nn.Parameter(values, requires_grad=False)
            module._parameters[key] = filled[id(parameter)]


def _repeat(pool: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Fills a weight with the numbers of a pool, so that its outputs are about as its inputs."""
    values = pool.repeat(-(-shape.numel() // len(pool)))[: shape.numel()].view(shape)
    return values.div_(shape[-1] ** 0.5) if len(shape) > 1 else values.div_(8).add_(1)
