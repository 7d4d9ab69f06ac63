"""Matrices of heads that stay in their file."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.tiny_models import HIDDEN_SIZE, VOCAB_SIZE, head_tensors

from medusa_trt.export.heads.key_layouts import recognize
from medusa_trt.export.heads.loading import load_heads
from medusa_trt.export.heads.unread import find_unread_matrices, group_matrices
from medusa_trt.export.weights.checkpoint_files import open_checkpoint


@pytest.mark.parametrize("vocab_size", [VOCAB_SIZE, None])
@pytest.mark.parametrize("file", ["heads.safetensors", "heads.pt"])
def test_matrices_stay_in_their_file(vocab_size: int | None, file: str, tmp_path: Path) -> None:
    tensors = head_tensors(num_heads=3, num_layers=2, vocab_size=vocab_size)
    generator = torch.Generator().manual_seed(7)
    for head in range(3):
        for name, width in (("projection", HIDDEN_SIZE), ("root_map", 2 * HIDDEN_SIZE)):
            weight = torch.randn(HIDDEN_SIZE, width, generator=generator)
            tensors[f"{head}.{name}.weight"] = weight
            tensors[f"{head}.{name}.bias"] = weight[:, 0].clone()
    tensors = {key: tensor.half() for key, tensor in tensors.items()}
    save = save_file if file.endswith(".safetensors") else torch.save
    save(tensors, tmp_path / file)
    heads = load_heads(tmp_path, read_all=False).heads
    keys = {"root_map": "root_map", "block0": "0.linear", "block1": "1.linear"}
    keys |= {"projection": "projection"} | ({"unembedding": "2"} if vocab_size else {})
    assert heads.unread.keys() == keys.keys()
    for name, unread in heads.unread.items():
        for head, tensor in enumerate(unread):
            expected = tensors[f"{head}.{keys[name]}.weight"].numpy()
            assert tensor.stored().dtype == np.float16
            assert np.array_equal(tensor.stored(), expected)
    for each in heads.heads:
        assert all(map_.weight.is_meta for map_ in each.maps)
        assert each.unembedding is None or each.unembedding.is_meta


def test_matrices_that_a_token_map_picks_from_are_read_at_once(tmp_path: Path) -> None:
    tensors = head_tensors(num_heads=2, num_layers=1)
    for found, num_unread in (
        (tensors, 4),
        (tensors | {"token_map": torch.arange(VOCAB_SIZE)}, 0),
        ({key: tensor.to(torch.float8_e4m3fn) for key, tensor in tensors.items()}, 0),
    ):
        save_file(found, tmp_path / "heads.safetensors")
        checkpoint = open_checkpoint(tmp_path / "heads.safetensors")
        recognized = recognize(found, "heads")
        named = {key: found[name] for key, name in recognized.names.items()}
        unread = find_unread_matrices(checkpoint, recognized, named)
        assert len(unread) == num_unread
        if unread:
            groups = {name: [t.key for t in each] for name, each in group_matrices(unread).items()}
            place = str(tmp_path / "heads.safetensors")
            assert groups == {
                "block0": [(place, f"{head}.0.linear.weight") for head in range(2)],
                "unembedding": [(place, f"{head}.1.weight") for head in range(2)],
            }
