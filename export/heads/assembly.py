"""Named tensors into heads: the tensors decide how many heads and layers there are."""

from collections.abc import Collection, Iterable, Mapping

import torch

from medusa_trt.errors import HeadsError
from medusa_trt.export.heads.key_layouts import UNEMBEDDINGS, HeadKey, Recognized
from medusa_trt.export.heads.medusa_heads import Linear, MedusaHead, MedusaHeads
from medusa_trt.files import join_names

_FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)


def heads_from_keys(
    recognized: Recognized,
    tensors: Mapping[HeadKey, torch.Tensor],
    source: str,
    unread: Collection[HeadKey] = (),
) -> MedusaHeads:
    """Builds heads in float32 out of a checkpoint's tensors.

    Args:
        recognized: how the file names them.
        tensors: all of the heads' tensors, in any floating-point type, FP8 with its scales.
        source: names the file in errors.
        unread: those that get a shape and no data; of unembeddings, which are large, no number
            is looked at.

    Raises:
        HeadsError: tensors that are missing, left over, misshapen or not finite; the error lists
            their keys.
    """
    tensors = {key: tensor.detach() for key, tensor in tensors.items()}
    token_map = tensors.pop(HeadKey("token_map"), None)
    named = {}
    for key in tensors:
        if key.kind in ("weight", "bias"):
            if key in unread and key.part in UNEMBEDDINGS:
                tensors[key] = tensors[key].to("meta")
            floats = _convert_to_float(recognized, tensors, key, source)
            named[key] = floats.to("meta") if key in unread else floats
    _refuse_stray_scales(recognized, tensors, source)
    common = named.pop(HeadKey("common_unembedding"), None)
    indices = {key.head for key in named if key.head is not None}
    if not indices or indices != set(range(len(indices))):
        raise HeadsError(f"{source} holds heads {sorted(indices)}: expected 0, 1, 2, ...")
    assembly = _Assembly(recognized, named, source)
    heads = tuple(assembly.head(index, common) for index in range(len(indices)))
    for index, head in enumerate(heads):
        if _list_shapes(head) != _list_shapes(heads[0]):
            raise HeadsError(f"{source}: head {index} differs from head 0 in its keys or shapes")
    if token_map is None:
        return MedusaHeads(heads)
    dtype, shape = token_map.dtype, tuple(token_map.shape)
    is_integer = not (dtype.is_floating_point or dtype.is_complex or dtype == torch.bool)
    if not is_integer or len(shape) != 1 or shape[0] == 0:
        raise HeadsError(f"{source}: token_map is {dtype} {shape}, expected (ids,) of integers")
    return MedusaHeads(heads, token_map.long())


class _Assembly:
    """Takes tensors out of `named`, head by head."""

    def __init__(
        self, recognized: Recognized, named: dict[HeadKey, torch.Tensor], source: str
    ) -> None:
        self.recognized = recognized
        self.named = named
        self.source = source

    def head(self, index: int, common: torch.Tensor | None) -> MedusaHead:
        first_key = HeadKey("block", "weight", index, 0)
        first = self.named.get(first_key)
        if first is None:
            raise HeadsError(f"{self.source} lacks {self.recognized.name(first_key)}")
        size = first.shape[0] if first.ndim else 1
        blocks: list[Linear] = []
        while HeadKey("block", "weight", index, len(blocks)) in self.named:
            blocks.append(self._take_linear(HeadKey("block", "weight", index, len(blocks)), size))
        projection = None
        if (key := HeadKey("projection", "weight", index)) in self.named:
            projection = self._take_linear(key, size)
        root_map = None
        if (key := HeadKey("root_map", "weight", index)) in self.named:
            root_map = self._take_linear(key, size, 2 * size)
        unembedding = common
        for layer in (None, len(blocks)):
            if (key := HeadKey("unembedding", "weight", index, layer)) in self.named:
                unembedding = self.named.pop(key)
                if common is not None:
                    name = self.recognized.name(HeadKey("common_unembedding"))
                    raise HeadsError(
                        f"{self.source} has both {name} and {self.recognized.name(key)}: keep one"
                    )
        if unembedding is not None and (unembedding.ndim != 2 or unembedding.shape[1] != size):
            shared = HeadKey("common_unembedding")
            name = self.recognized.name(key if common is None else shared)
            raise HeadsError(
                f"{self.source}: {name} is {tuple(unembedding.shape)}, "
                f"expected (vocabulary, {size})"
            )
        if left := [self.recognized.name(key) for key in self.named if key.head == index]:
            raise HeadsError(
                f"{self.source}: head {index} has {len(blocks)} whole layers, to which these keys "
                f"do not belong: {join_names(left)}"
            )
        return MedusaHead(tuple(blocks), projection, unembedding, root_map)

    def _take_linear(self, weight_key: HeadKey, size: int, num_inputs: int | None = None) -> Linear:
        bias_key = weight_key._replace(kind="bias")
        weight, bias = self.named.pop(weight_key), self.named.pop(bias_key, None)
        shapes = (size, num_inputs or size), (size,)
        for key, tensor, shape in zip((weight_key, bias_key), (weight, bias), shapes, strict=True):
            if tensor is not None and tuple(tensor.shape) != shape:
                raise HeadsError(
                    f"{self.source}: {self.recognized.name(key)} is {tuple(tensor.shape)}, "
                    f"expected {shape}"
                )
        return Linear(weight, bias)


def _convert_to_float(
    recognized: Recognized, tensors: Mapping[HeadKey, torch.Tensor], key: HeadKey, source: str
) -> torch.Tensor:
    """Converts a tensor to float32, FP8 by its scale."""
    tensor, name = tensors[key], recognized.name(key)
    if not tensor.is_floating_point():
        raise HeadsError(f"{source}: {name} is {tensor.dtype}, expected floating point")
    if tensor.dtype in _FP8:
        scale_key = key._replace(kind="weight_scale")
        if scale_key not in tensors:
            raise HeadsError(
                f"{source}: {name} is FP8 without its {recognized.name(scale_key)}: "
                "give the whole checkpoint"
            )
        scale = tensors[scale_key].float()
        if scale.numel() not in (1, tensor.shape[0]):
            raise HeadsError(
                f"{source}: {recognized.name(scale_key)} is {tuple(scale.shape)}, expected one "
                f"scale or ({tensor.shape[0]},)"
            )
        tensor = tensor.float() * scale.reshape(-1, *[1] * (tensor.ndim - 1))
    tensor = tensor.float()
    if not tensor.is_meta and not torch.isfinite(tensor).all():
        raise HeadsError(f"{source}: {name} holds NaN or infinity: the training has failed")
    return tensor


def _refuse_stray_scales(
    recognized: Recognized, tensors: Mapping[HeadKey, torch.Tensor], source: str
) -> None:
    stray = []
    for key in tensors:
        if key.kind.endswith("_scale"):
            weight = tensors.get(key._replace(kind="weight"))
            if weight is None or weight.dtype not in _FP8:
                stray.append(recognized.name(key))
    if stray:
        raise HeadsError(f"{source} has scales that belong to no FP8 weight: {join_names(stray)}")


def _list_shapes(head: MedusaHead) -> tuple[object, ...]:
    return (
        len(head.blocks),
        [(map_.weight.shape, map_.bias is None) for map_ in head.maps],
        None if head.unembedding is None else head.unembedding.shape,
    )


def find_equal_layers(tensors: Mapping[HeadKey, torch.Tensor]) -> Iterable[str]:
    """Names blocks of a head that hold the same numbers although they are separate tensors."""
    for key in sorted(key for key in tensors if key[:2] == ("block", "weight") and key.layer):
        first, block = tensors[key._replace(layer=0)], tensors[key]
        if block.float().any() and torch.equal(block, first):
            yield f"head {key.head}: layers 0 and {key.layer} are equal, as if trained as one"
