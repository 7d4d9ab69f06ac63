"""Models without weights in memory: those of a module are read when it runs, then dropped."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from functools import partial

import ml_dtypes
import numpy as np
import onnx_ir as ir
import torch
from accelerate import init_empty_weights
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoModelForCausalLM,
)

from medusa_trt.export.weights.causal_decoder import DecoderForCausalLM
from medusa_trt.export.weights.lazy_tensor import Array, LazyTensor

_PART_SIZE = 1 << 24
"""Elements of a linear layer that are converted to float32 at a time."""

Weights = Mapping[str, LazyTensor]
"""Weights of a model by parameter name; tied weights appear under each of their names."""


def make_empty_model(config: PretrainedConfig) -> PreTrainedModel:
    """Makes a model with parameters on the meta device and with correct buffers."""
    model: PreTrainedModel
    with make_on_meta():
        if is_decoder_alone(config):
            config.dtype = torch.float32
            model = DecoderForCausalLM(config)
        else:
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.tie_weights()
    model.eval()
    return model


def is_decoder_alone(config: PretrainedConfig) -> bool:
    """Whether transformers has a model only as a part of others, without a causal model of it."""
    is_part = config.base_config_key == "text_config"
    return is_part and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING


@contextmanager
def make_on_meta() -> Iterator[None]:
    """Puts the parameters of models that are made in the block on the meta device.

    Buffers are made as always.
    """
    with init_empty_weights(include_buffers=False), no_init_weights():
        yield


def wrap_weights(model: PreTrainedModel) -> Weights:
    """Wraps the parameters of a loaded model."""
    first_names: dict[int, str] = {}
    weights = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        key = "parameter", first_names.setdefault(id(parameter), name)
        read = partial(array_from_tensor, parameter.detach())
        weights[name] = LazyTensor(read, tuple(parameter.shape), key)
    return weights


def load_weights(
    model: PreTrainedModel, weights: Weights, dtype: torch.dtype | None = torch.float32
) -> None:
    """Reads all weights of a model into its memory; without a type, in the types of the file."""
    stored = {
        name: tensor_from_array(weights[name].stored()) for name, _ in model.named_parameters()
    }
    state = {name: tensor.to(dtype or tensor.dtype) for name, tensor in stored.items()}
    model.load_state_dict(state, assign=True, strict=False)
    model.tie_weights()


def convert_model(
    model: PreTrainedModel, weights: Weights, dtype: torch.dtype
) -> tuple[PreTrainedModel, Weights]:
    """Converts a model and its weights to another data type, for tracing.

    Only the shapes of its parameters matter: tracing does not read their values. Rotary
    frequencies stay as they are, as in `from_pretrained`: a small error of one is a large one of
    the angle at a far position.
    """
    kind = ir.DataType.from_numpy(np.dtype(str(dtype).removeprefix("torch.")))
    weights = {name: weight.convert(kind) for name, weight in weights.items()}
    if model.dtype == dtype:
        return model, weights
    empty: dict[int, object] = {}
    for parameter in model.parameters():
        on_meta = parameter.to("meta", dtype)
        empty[id(parameter)] = nn.Parameter(on_meta, requires_grad=False)
    traced: PreTrainedModel = nn.Module.to(deepcopy(model, empty), dtype)
    for name, buffer in model.named_buffers():
        module, _, buffer_name = name.rpartition(".")
        if buffer_name.endswith("inv_freq"):
            setattr(traced.get_submodule(module), buffer_name, buffer.clone())
    return traced, weights


def tensor_from_array(array: Array) -> torch.Tensor:
    """Shares the memory of an array, bfloat16 included."""
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def array_from_tensor(tensor: torch.Tensor) -> Array:
    """Shares the memory of a tensor, bfloat16 included."""
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    array: Array = tensor.numpy()
    return array


@contextmanager
def supply_weights(model: PreTrainedModel, weights: Weights) -> Iterator[None]:
    """Lets a model without weights in memory run inside the block.

    A model with its weights in memory is left as it is.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    handles = []
    in_parts: list[nn.Module] = []
    for module in model.modules():
        empty = {
            key: (parameter, names[id(parameter)])
            for key, parameter in module._parameters.items()
            if parameter is not None and parameter.is_meta
        }
        if empty and type(module) is nn.Linear and module.weight.numel() > _PART_SIZE:
            by_key = {key: weights[name] for key, (_, name) in empty.items()}
            module.forward = partial(_multiply_parts, by_key["weight"], by_key.get("bias"))  # type: ignore[method-assign]
            in_parts.append(module)
        elif empty:
            loader = _Loader(empty, weights)
            handles.append(module.register_forward_pre_hook(loader.fill))
            handles.append(module.register_forward_hook(loader.drop, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for module in in_parts:
            del module.forward  # The forward of its class is used again.


def _multiply_parts(weight: LazyTensor, bias: LazyTensor | None, x: torch.Tensor) -> torch.Tensor:
    """Multiplies by a matrix, such as an unembedding, that is too large to convert as a whole."""
    stored = tensor_from_array(weight.stored())
    rows = max(1, _PART_SIZE // stored.shape[1])
    outputs = torch.cat([nn.functional.linear(x, part.float()) for part in stored.split(rows)], -1)
    return outputs if bias is None else outputs + tensor_from_array(bias.stored()).float()


class _Loader:
    """Gives one module its parameters for one call."""

    def __init__(self, empty: dict[str, tuple[nn.Parameter, str]], weights: Weights) -> None:
        self._empty, self._weights = empty, weights
        self._padding_idx: int | None = None

    def fill(self, module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> object:
        for key, (_meta, name) in self._empty.items():
            tensor = tensor_from_array(self._weights[name].stored())
            if isinstance(module, nn.Embedding):
                # Only the rows in use are converted; the ids then count within these rows.
                rows, places = inputs[0].unique(return_inverse=True)
                tensor, inputs = tensor[rows], (places, *inputs[1:])
                # The padding index matters for gradients only, and may name no row now.
                self._padding_idx, module.padding_idx = module.padding_idx, None
            module._parameters[key] = nn.Parameter(tensor.float(), requires_grad=False)
        return inputs

    def drop(self, module: nn.Module, *_: object) -> None:
        for key, (meta, _name) in self._empty.items():
            module._parameters[key] = meta
        if isinstance(module, nn.Embedding):
            module.padding_idx = self._padding_idx


@contextmanager
def fake_parameters(module: nn.Module) -> Iterator[FakeTensorMode]:
    """Replaces the parameters of a module inside the block by fake ones, without data."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fakes: dict[int, nn.Parameter] = {}
    replaced = [
        (submodule, key, parameter)
        for submodule in module.modules()
        for key, parameter in submodule._parameters.items()
        if parameter is not None
    ]
    for submodule, key, parameter in replaced:
        if id(parameter) not in fakes:
            with mode:
                fake = torch.empty(parameter.shape, dtype=parameter.dtype, device="cpu")
            fakes[id(parameter)] = nn.Parameter(fake, requires_grad=False)
        submodule._parameters[key] = fakes[id(parameter)]
    try:
        yield mode
    finally:
        for submodule, key, parameter in replaced:
            submodule._parameters[key] = parameter
