"""Files of heads: what is read of them, and what is refused."""

from pathlib import Path

import pytest
import torch
from support.checkpoints.checkpoint_tensors import (
    HIDDEN,
    MAP,
    VOCAB,
    Tensors,
    save_tensors,
    tensors,
)

from medusa_trt.export.heads.loading import heads_from_path
from medusa_trt.export.heads.medusa_heads import MedusaHeads


@pytest.mark.parametrize("file", ["medusa_lm_head.safetensors", "medusa_lm_head.pt"])
@pytest.mark.parametrize("prefix", ["", "medusa_head.", "base_model.model.medusa_head."])
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("bias", [False, True])
def test_the_public_layout_is_read(
    file: str, prefix: str, own: bool, num_layers: int, bias: bool, tmp_path: Path
) -> None:
    found = tensors(num_heads=5, num_layers=num_layers, own=own, bias=bias)
    save_tensors({prefix + key: tensor for key, tensor in found.items()}, tmp_path / file)
    for path in (tmp_path, tmp_path / file):
        heads = heads_from_path(path)
        assert (heads.num_heads, heads.num_layers, heads.hidden_size) == (5, num_layers, HIDDEN)
        assert as_public(heads).keys() == found.keys()
        assert all(torch.equal(tensor, found[key]) for key, tensor in as_public(heads).items())
        heads.check_fits(HIDDEN, VOCAB)


def as_public(heads: MedusaHeads) -> Tensors:
    """The heads' tensors by their public names."""
    found = {}
    for index, head in enumerate(heads.heads):
        for layer, block in enumerate(head.blocks):
            found[f"{index}.{layer}.linear.weight"] = block.weight
            if block.bias is not None:
                found[f"{index}.{layer}.linear.bias"] = block.bias
        if head.unembedding is not None:
            found[f"{index}.{len(head.blocks)}.weight"] = head.unembedding
    return found


def test_half_precision_and_parameters_become_plain_floats(tmp_path: Path) -> None:
    found: Tensors = {
        key: torch.nn.Parameter(tensor.half())
        for key, tensor in tensors(own=True, token_map=False).items()
    }
    heads = heads_from_path(save_tensors(found, tmp_path / "heads.pt"))
    read = as_public(heads)
    assert all(torch.equal(read[key], found[key].float()) for key in found)
    assert not any(tensor.requires_grad for tensor in read.values())


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_the_extensions_are_read(dtype: torch.dtype, tmp_path: Path) -> None:
    found = tensors(own=True, projection=True, root_map=True, token_map=True)
    file = save_tensors(found | {"token_map": MAP.to(dtype)}, tmp_path / "heads.safetensors")
    heads = heads_from_path(file)
    assert heads.token_map is not None and heads.token_map.dtype == torch.int64
    assert heads.token_map.tolist() == MAP.tolist()
    assert heads.draft_vocab_size(VOCAB) == len(MAP)
    heads.check_fits(HIDDEN, VOCAB)
    for index, head in enumerate(heads.heads):
        assert head.projection is not None and head.projection.bias is not None
        assert torch.equal(head.projection.weight, found[f"{index}.projection.weight"])
        assert torch.equal(head.projection.bias, found[f"{index}.projection.bias"])
        assert head.root_map is not None and head.root_map.bias is not None
        assert torch.equal(head.root_map.weight, found[f"{index}.root_map.weight"])
        assert torch.equal(head.root_map.bias, found[f"{index}.root_map.bias"])
    assert heads.reads_root
