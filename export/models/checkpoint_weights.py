"""A checkpoint's weights by the names of the model's parameters, read when they are used."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch

from medusa_trt.errors import ExportError
from medusa_trt.export.heads.key_layouts import strip_wrappers
from medusa_trt.export.models.multimodal.stored_names import StoredNames
from medusa_trt.export.models.multimodal.text_part import TextPart
from medusa_trt.export.models.unread_tensors import refuse_unread
from medusa_trt.export.weights.hub import find_file
from medusa_trt.export.weights.lazy_tensor import Array, LazyTensor
from medusa_trt.export.weights.packed_weights import Packing
from medusa_trt.export.weights.streamed_model import Weights, tensor_from_array
from medusa_trt.export.weights.tensor_source import (
    PLAIN_DTYPES,
    TensorSource,
    map_tensors,
    read_weight_map,
)
from medusa_trt.export.weights.tied_weights import untie_unequal
from medusa_trt.files import join_names

_NAMES = ("model.safetensors", "pytorch_model.bin")
"""File names of weights, by preference; a sharded checkpoint has an index of that name."""

_OLD_NAMES = "gptq_model-*.safetensors"
"""Names that AutoGPTQ gave to files: `gptq_model-4bit-32g.safetensors`, for example."""


def weights_from_checkpoint(
    part: TextPart, location: str, packing: Packing | None = None
) -> Weights | None:
    """Finds the weights of a folder or hub repository, in safetensors or PyTorch's files.

    Args:
        part: a model without weights in memory; the checkpoint's buffers are loaded into it.
        location: a folder or hub id.
        packing: form in which its linear layers are packed; None if they are not quantized.

    Returns:
        A tensor for each parameter; None where the checkpoint is of another kind or its tensors
        have to be joined or converted, which transformers does in memory.

    Raises:
        ExportError: a file is damaged, or weights are missing, misshapen, of a type that needs a
            scale, or left over where the model has none.
    """
    files = find_weight_files(location)
    if files is None:
        return None
    model = part.model
    stored = _find_tensors(part, files, location, packing)
    if stored is None:
        return None
    buffers = dict(model.named_buffers())
    for name in stored.keys() & buffers.keys():
        buffers[name].copy_(tensor_from_array(stored[name].stored()))
    weights = untie_unequal(model, stored)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, weight in weights.items():
        if weight.sizes != (shape := tuple(parameters[name].shape)):
            raise ExportError(f"{location}: {name} is {weight.sizes}, the config says {shape}")
    if missing := parameters.keys() - weights.keys():
        raise ExportError(
            f"{location} lacks weights of the model: {join_names(missing)}; give a whole model"
        )
    return weights


def find_weight_files(location: str) -> list[Path] | None:
    """Finds the checkpoint's files, downloaded where the location is a hub id; None without any.

    Raises:
        ExportError: shards are missing, or hold a tensor twice with different values.
    """
    for single in _NAMES:
        # transformers too takes a whole file before an index, which may be left from another save.
        if file := find_file(location, single):
            return [file]
        if index := find_file(location, f"{single}.index.json"):
            return _find_shards(location, index)
    files = sorted(Path(location).glob(_OLD_NAMES))
    return files if len(files) == 1 else None


def _find_shards(location: str, index: Path) -> list[Path]:
    weight_map = read_weight_map(index)
    names = sorted(set(weight_map.values()))
    found = {name: find_file(location, name) for name in names}
    if missing := [name for name, file in found.items() if file is None]:
        raise ExportError(f"{index} lists files that are not there: {join_names(missing)}")
    files = {name: file for name, file in found.items() if file is not None}
    _refuse_second_versions(index, weight_map, files)
    return list(files.values())


def _refuse_second_versions(
    index: Path, weight_map: Mapping[str, str], files: Mapping[str, Path]
) -> None:
    """Refuses shards that hold a tensor twice with different values.

    The index says which file has the right one. transformers reads the last one all the same.
    """
    for name, file in files.items():
        for key, tensor in map_tensors(file).items():
            home = weight_map.get(key, name)
            right = tensor if home == name else map_tensors(files[home]).get(key, tensor)
            if right.dtype != tensor.dtype or not torch.equal(right, tensor):
                raise ExportError(
                    f"{file} holds another {key} than {home}, where {index.name} says that it is: "
                    "remove the wrong one, or download the model again"
                )


def _find_tensors(
    part: TextPart, files: list[Path], location: str, packing: Packing | None
) -> dict[str, LazyTensor] | None:
    names, wanted = StoredNames(part), part.model.state_dict()
    tensors = {}
    packed: dict[str, dict[str, TensorSource]] = {}
    unread: dict[str, TensorSource] = {}
    for file in files:
        for key, tensor in map_tensors(file).items():
            bare_key = strip_wrappers(key)
            layer, _, suffix = bare_key.rpartition(".")
            if packing is not None and suffix in packing.suffixes:
                if names.find(f"{layer}.weight").name is None:
                    continue
                packed.setdefault(layer, {})[suffix] = TensorSource(file, key)
                continue
            name, is_converted = names.find(bare_key)
            if name is None:
                continue
            if name not in wanted:
                unread[name] = TensorSource(file, key)
                continue
            if is_converted:
                return None
            if tensor.dtype not in PLAIN_DTYPES:
                raise ExportError(
                    f"{location}: {key} is {str(tensor.dtype).removeprefix('torch.')}, and the "
                    "config names no quantization that would say what it stands for: give the "
                    "full-precision model"
                )
            source = TensorSource(file, key)
            tensors[name] = LazyTensor(source.read, tuple(tensor.shape), (location, key))
    refuse_unread(part.model, unread, location, lambda name: not unread[name].read().any())
    for layer, sources in packed.items():
        assert packing is not None
        needed = set(packing.suffixes) - set(packing.optional)
        if missing := sorted(needed - sources.keys()):
            raise ExportError(f"{location}: {layer} lacks {join_names(missing)}")
        name = names.find(f"{layer}.weight").name
        if name in wanted:
            sizes = tuple(wanted[name].shape)
            form = packing.find_layer(layer)
            read = partial(_unpack, form, sources, sizes, f"{location}: {layer}")
            tensors[name] = LazyTensor(read, sizes, (location, layer), quantization=form.name)
    return tensors


def _unpack(
    packing: Packing, sources: Mapping[str, TensorSource], shape: tuple[int, ...], place: str
) -> Array:
    tensors = {suffix: source.read() for suffix, source in sources.items()}
    try:
        weight = packing.unpack(tensors, packing)
    except (ValueError, IndexError) as error:
        raise ExportError(f"{place} does not fit together: {error}") from error
    if weight.shape != shape:
        raise ExportError(f"{place} is {weight.shape}, the config says {shape}")
    return weight
