"""Finds the tensors of a GGUF file that belong to a model's parameters, dequantized when used."""

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
from medusa_trt.export.weights.tied_weights import untie_unequal

_FLOAT_TYPES = {
    GGMLQuantizationType.F16,
    GGMLQuantizationType.BF16,
    GGMLQuantizationType.F32,
    GGMLQuantizationType.F64,
}


def weights_from_gguf(model: PreTrainedModel, path: Path) -> Weights | None:
    """Finds the weights of a GGUF file of any quantization.

    Args:
        model: a model that was made from the config in the file; its weights are not read.
        path: the file, or the first one of several parts.

    Returns:
        A tensor for each parameter; None where tensors have to be joined or are missing, which
        transformers handles in memory.

    Raises:
        ExportError: the file has tensors that belong to no parameter of the model.
    """
    gguf = read_gguf(path)
    processor_class: Any = TENSOR_PROCESSORS.get(gguf.architecture, TensorProcessor)
    processor = processor_class(model.config.to_dict())
    names = _map_tensor_names(model, gguf.architecture, processor)
    if names is None:
        return None
    parameters = dict(model.named_parameters(remove_duplicate=False))
    stored: dict[str, LazyTensor] = {}
    for tensor in gguf.tensors:
        name = names.get(tensor.name)
        if name is None and tensor.name not in ROPE_TENSORS:
            raise ExportError(
                f"{path} has {tensor.name}, which a {model.config.model_type} model in "
                "transformers does not have: give the model as safetensors"
            )
        if name not in parameters:
            continue
        shape = tuple(parameters[name].shape)
        if math.prod(shape) != math.prod(tensor.shape):
            return None
        read = partial(_read_processed, tensor, processor)
        kind = None if tensor.kind in _FLOAT_TYPES else tensor.kind.name
        stored[name] = LazyTensor(read, shape, (str(path), tensor.name), quantization=kind)
    weights = untie_unequal(model, stored)
    return weights if weights.keys() == parameters.keys() else None


def _map_tensor_names(
    model: PreTrainedModel, architecture: str, processor: Any
) -> dict[str, str] | None:
    """Finds the parameter of each tensor name; None for an architecture that gguf does not know.

    The function in transformers repeats this for each module of the model, which takes several
    seconds.
    """
    architectures = {name: key for key, name in MODEL_ARCH_NAMES.items()}
    if architecture not in architectures:
        return None
    name_map = get_tensor_name_map(architectures[architecture], model.config.num_hidden_layers)
    names: dict[str, str] = {}
    for parameter in model.state_dict():
        name = processor.preprocess_name(parameter)
        stem, dot, suffix = name.rpartition(".")
        if suffix not in ("weight", "bias"):
            stem, dot, suffix = name, "", ""
        # A file that was converted from a model without unembedding has names without the prefix.
        short_stem = stem.removeprefix(f"{model.base_model_prefix}.")
        tensor = name_map.get_name(stem) or name_map.get_name(short_stem)
        if tensor is None:
            processor.perform_fallback_tensor_mapping(names, dot + suffix, "", name)
        else:
            names.setdefault(tensor + dot + suffix, name)
    return names


def _read_processed(tensor: GgufTensor, processor: Any) -> Array:
    """Reads a tensor and undoes the changes of llama.cpp's converter, such as permuted rows."""
    array: Array = processor.process(
        weights=tensor.read(), name=tensor.name, tensor_key_mapping={}, parsed_parameters={}
    ).weights
    return np.ascontiguousarray(array)
