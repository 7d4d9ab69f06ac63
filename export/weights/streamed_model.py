"""A model without weights in memory: each module's are read when it runs, and dropped after."""

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
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from medusa_trt.export.weights.lazy_tensor import Array, LazyTensor

_PART_SIZE = 1 << 24
"""Elements of a linear layer that are converted to float32 at a time."""

Weights = Mapping[str, LazyTensor]
"""A model's parameters by their names, every name of a tied one."""


def make_empty_model(config: PretrainedConfig) -> PreTrainedModel:
    """A model whose parameters are on the meta device and whose buffers are as they should be."""
    with init_empty_weights(include_buffers=False), no_init_weights():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.tie_weights()
    model.eval()
    return model


def weights_in_memory(model: PreTrainedModel) -> Weights:
    """A loaded model's own parameters."""
    first_names: dict[int, str] = {}
    weights = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        key = "parameter", first_names.setdefault(id(parameter), name)
        read = partial(array_from_tensor, parameter.detach())
        weights[name] = LazyTensor(read, tuple(parameter.shape), key)
    return weights


def in_type(
    model: PreTrainedModel, weights: Weights, dtype: torch.dtype
) -> tuple[PreTrainedModel, Weights]:
    """A model to trace in a type, of whose parameters only the shapes count, and its weights."""
    kind = ir.DataType.from_numpy(np.dtype(str(dtype).removeprefix("torch.")))
    weights = {name: weight.in_type(kind) for name, weight in weights.items()}
    if model.dtype == dtype:
        return model, weights
    empty: dict[int, object] = {}
    for each in model.parameters():
        empty[id(each)] = nn.Parameter(each.to("meta", dtype), requires_grad=False)
    traced: PreTrainedModel = nn.Module.to(deepcopy(model, empty), dtype)
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
def weights_at_hand(model: PreTrainedModel, weights: Weights) -> Iterator[None]:
    """Lets an empty model run inside the block; a model with its weights in memory runs anyway."""
    names = {id(each): name for name, each in model.named_parameters()}
    handles = []
    in_parts: list[nn.Module] = []
    for module in model.modules():
        empty = {
            key: (each, names[id(each)])
            for key, each in module._parameters.items()
            if each is not None and each.is_meta
        }
        if empty and type(module) is nn.Linear and module.weight.numel() > _PART_SIZE:
            by_key = {key: weights[name] for key, (_, name) in empty.items()}
            module.forward = partial(_linear_in_parts, by_key["weight"], by_key.get("bias"))  # type: ignore[method-assign]
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
            del module.forward  # the class has its own


def _linear_in_parts(weight: LazyTensor, bias: LazyTensor | None, x: torch.Tensor) -> torch.Tensor:
    """A product with a matrix too large to be converted as a whole, an unembedding's."""
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
                # A few rows are converted instead of the whole, and the ids count among these.
                rows, places = inputs[0].unique(return_inverse=True)
                tensor, inputs = tensor[rows], (places, *inputs[1:])
                # It only matters for gradients, and may be no row now.
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
    """Gives a module parameters with shapes and no data inside the block, to be traced with."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fakes: dict[int, nn.Parameter] = {}
    replaced: list[tuple[nn.Module, str, nn.Parameter]] = []
    for each in module.modules():
        for key, own in each._parameters.items():
            if own is not None:
                replaced.append((each, key, own))
    for each, key, own in replaced:
        if id(own) not in fakes:
            with mode:
                fake = torch.empty(own.shape, dtype=own.dtype, device="cpu")
            fakes[id(own)] = nn.Parameter(fake, requires_grad=False)
        each._parameters[key] = fakes[id(own)]
    try:
        yield mode
    finally:
        for each, key, own in replaced:
            each._parameters[key] = own
