"""A GGUF file's weights by the names of the model's parameters, dequantized when they are used."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, dequantize
from transformers import PreTrainedModel
from transformers.modeling_gguf_pytorch_utils import (
    TENSOR_PROCESSORS,
    TensorProcessor,
    get_gguf_hf_weights_map,
    read_field,
)

from medusa_trt.errors import ExportError
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
    """The weights of a GGUF file of any quantization.

    Args:
        model: of the file's own config; its weights are not read.
        path: the file.

    Returns:
        A tensor for each parameter; None where tensors have to be joined or are missing, which
        transformers handles in memory.

    Raises:
        ExportError: the file has tensors that the model has no place for.
    """
    reader = GGUFReader(path)
    architecture = read_field(reader, "general.architecture")[0]
    processor_class: Any = TENSOR_PROCESSORS.get(architecture, TensorProcessor)
    processor = processor_class(model.config.to_dict())
    try:
        names = get_gguf_hf_weights_map(model, processor)
    except NotImplementedError:
        return None
    by_parameter: dict[int, str] = {}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    found: dict[str, LazyTensor] = {}
    for tensor in reader.tensors:
        name = names.get(tensor.name)
        if name is None and tensor.name not in ROPE_TENSORS:
            raise ExportError(
                f"{path} has {tensor.name}, which transformers has no place for in a "
                f"{model.config.model_type} model: give the model as safetensors"
            )
        if name not in parameters:
            continue
        shape = tuple(parameters[name].shape)
        if int(np.prod(shape)) != int(tensor.n_elements):
            return None
        source = _Source(
            path,
            tensor.name,
            int(tensor.data_offset),
            tensor.data.dtype,
            tensor.data.shape,
            tensor.tensor_type,
            processor,
        )
        kind = None if tensor.tensor_type in _WHOLE else tensor.tensor_type.name
        found[name] = LazyTensor(source.read, shape, (str(path), tensor.name), quantization=kind)
        by_parameter.setdefault(id(parameters[name]), name)
    weights = {
        name: found[by_parameter[id(parameter)]]
        for name, parameter in parameters.items()
        if id(parameter) in by_parameter
    }
    return weights if weights.keys() == parameters.keys() else None


@dataclass(frozen=True, slots=True)
class _Source:
    """One tensor of the file; it is read, not mapped, so that its pages do not stay."""

    path: Path
    name: str
    offset: int
    dtype: Any
    shape: tuple[int, ...]
    kind: Any
    processor: Any

    def read(self) -> Array:
        count = int(np.prod(self.shape))
        data = np.fromfile(self.path, self.dtype, count, offset=self.offset).reshape(self.shape)
        array: Array = self.processor.process(
            weights=dequantize(data, self.kind),
            name=self.name,
            tensor_key_mapping={},
            parsed_parameters={},
        ).weights
        return np.ascontiguousarray(array)
