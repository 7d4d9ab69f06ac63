"""A GGUF file's weights by the names of the model's parameters, dequantized when they are used."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from gguf import MODEL_ARCH_NAMES, GGMLQuantizationType, get_tensor_name_map
from transformers import PreTrainedModel
from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor

from medusa_trt.errors import ExportError
from medusa_trt.export.models.gguf import GgufTensor, read_gguf
from medusa_trt.export.models.gguf_config import ROPE_TENSORS
from medusa_trt.export.weights.lazy_tensor import Array, LazyTensor
from medusa_trt.export.weights.streamed_model import Weights

_WHOLE = {
    GGMLQuantizationType.F16,
    GGMLQuantizationType.BF16,
    GGMLQuantizationType.F32,
    GGMLQuantizationType.F64,
}


def weights_from_gguf(model: PreTrainedModel, path: Path) -> Weights | None:
    """Finds the weights of a GGUF file of any quantization.

    Args:
        model: of the file's own config; its weights are not read.
        path: the file, or the first one of several parts.

    Returns:
        A tensor for each parameter; None where tensors have to be joined or are missing, which
        transformers handles in memory.

    Raises:
        ExportError: the file has tensors that the model has no place for.
    """
    gguf = read_gguf(path)
    processor_class: Any = TENSOR_PROCESSORS.get(gguf.architecture, TensorProcessor)
    processor = processor_class(model.config.to_dict())
    names = _parameters_by_tensor(model, gguf.architecture, processor)
    if names is None:
        return None
    parameters = dict(model.named_parameters(remove_duplicate=False))
    stored: dict[str, LazyTensor] = {}
    for tensor in gguf.tensors:
        name = names.get(tensor.name)
        if name is None and tensor.name not in ROPE_TENSORS:
            raise ExportError(
                f"{path} has {tensor.name}, which transformers has no place for in a "
                f"{model.config.model_type} model: give the model as safetensors"
            )
        if name not in parameters:
            continue
        shape = tuple(parameters[name].shape)
        if math.prod(shape) != math.prod(tensor.shape):
            return None
        read = partial(_read_processed, tensor, processor)
        kind = None if tensor.kind in _WHOLE else tensor.kind.name
        stored[name] = LazyTensor(read, shape, (str(path), tensor.name), quantization=kind)
    first_names: dict[int, str] = {}
    for name in stored:
        first_names.setdefault(id(parameters[name]), name)
    weights = {
        name: stored[first_names[id(parameter)]]
        for name, parameter in parameters.items()
        if id(parameter) in first_names
    }
    return weights if weights.keys() == parameters.keys() else None


def _parameters_by_tensor(
    model: PreTrainedModel, architecture: str, processor: Any
) -> dict[str, str] | None:
    """Finds the parameter of each tensor name; None for an architecture that gguf does not know.

    transformers does the same once for each of a model's modules, which takes several seconds.
    """
    known = {name: key for key, name in MODEL_ARCH_NAMES.items()}
    if architecture not in known:
        return None
    name_map = get_tensor_name_map(known[architecture], model.config.num_hidden_layers)
    names: dict[str, str] = {}
    for parameter in model.state_dict():
        name = processor.preprocess_name(parameter)
        stem, dot, suffix = name.rpartition(".")
        if suffix not in ("weight", "bias"):
            stem, dot, suffix = name, "", ""
        # Some files were converted from a model without its unembedding.
        bare = stem.removeprefix(f"{model.base_model_prefix}.")
        tensor = name_map.get_name(stem) or name_map.get_name(bare)
        if tensor is None:
            processor.perform_fallback_tensor_mapping(names, dot + suffix, "", name)
        else:
            names.setdefault(tensor + dot + suffix, name)
    return names


def _read_processed(tensor: GgufTensor, processor: Any) -> Array:
    """Reads a tensor and undoes what llama.cpp changed in it."""
    array: Array = processor.process(
        weights=tensor.read(), name=tensor.name, tensor_key_mapping={}, parsed_parameters={}
    ).weights
    return np.ascontiguousarray(array)
