"""Head checkpoints: the public layout in its variants, and what is refused."""

import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny_models import HIDDEN_SIZE, VOCAB_SIZE, head_tensors, save_tiny_heads

from medusa_trt.errors import HeadsError
from medusa_trt.export.head_checkpoint import heads_from_path, heads_from_tensors
from medusa_trt.export.heads import HeadsModule

Tensors = dict[str, torch.Tensor]


def logits_by_hand(
    tensors: Tensors, unembedding: torch.Tensor, hidden: NDArray[np.float64], head: int
) -> NDArray[np.float64]:
    """One head as the paper writes it, straight from the checkpoint's keys."""
    arrays = {key: tensor.double().numpy() for key, tensor in tensors.items()}
    state, layer = hidden, 0
    while f"{head}.{layer}.linear.weight" in arrays:
        z = arrays[f"{head}.{layer}.linear.weight"] @ state
        z = z + arrays.get(f"{head}.{layer}.linear.bias", 0)
        state = state + z / (1 + np.exp(-z))
        layer += 1
    if f"{head}.projection.weight" in arrays:
        projection = arrays[f"{head}.projection.weight"] @ state
        state = state + projection + arrays[f"{head}.projection.bias"]
    weight = arrays.get(f"{head}.{layer}.weight", unembedding.double().numpy())
    if f"{head}.{layer}.weight" not in arrays and "token_map" in tensors:
        weight = weight[tensors["token_map"].numpy()]
    product: NDArray[np.float64] = weight @ state
    return product


def with_projection(tensors: Tensors) -> Tensors:
    extra = head_tensors(num_heads=4, num_layers=1, vocab_size=None, seed=9)
    return tensors | {
        key.replace(".0.linear.", ".projection."): tensor for key, tensor in extra.items()
    }


def without_biases(tensors: Tensors) -> Tensors:
    return {key: tensor for key, tensor in tensors.items() if not key.endswith("bias")}


VARIANTS = {
    "own": head_tensors(num_layers=1),
    "three-layers": head_tensors(num_layers=3),
    "shared": head_tensors(vocab_size=None),
    "no-bias": without_biases(head_tensors()),
    "projection": with_projection(head_tensors(num_layers=1, vocab_size=None)),
    "token-map": head_tensors(vocab_size=None) | {"token_map": torch.arange(0, VOCAB_SIZE, 4)},
    "own-token-map": head_tensors(vocab_size=75) | {"token_map": torch.arange(0, VOCAB_SIZE, 4)},
}


@pytest.mark.parametrize("tensors", VARIANTS.values(), ids=VARIANTS.keys())
def test_heads_compute_what_the_paper_says(tensors: Tensors) -> None:
    generator = torch.Generator().manual_seed(0)
    unembedding = torch.randn(VOCAB_SIZE, HIDDEN_SIZE, generator=generator)
    hidden = torch.randn(3, HIDDEN_SIZE, generator=generator)
    heads = heads_from_tensors(tensors, "heads")
    heads.check_fits(HIDDEN_SIZE, VOCAB_SIZE)
    module = HeadsModule(heads, unembedding, top_k=5)
    logits, drafts = module.logits(hidden), module(hidden)
    for head in range(4):
        for row in range(3):
            expected = logits_by_hand(tensors, unembedding, hidden[row].double().numpy(), head)
            assert np.allclose(logits[head, row].numpy(), expected, atol=1e-3)
            best = np.argsort(-expected)[:5]
            token_map = tensors.get("token_map", torch.arange(VOCAB_SIZE)).numpy()
            assert drafts[row, head].tolist() == token_map[best].tolist()


def test_layers_of_a_head_are_not_tied() -> None:
    # Fault 2 of the reference implementation: `[ResBlock] * L` made them one.
    heads = heads_from_tensors(head_tensors(num_layers=2), "heads")
    first, second = heads.heads[0].blocks
    assert not torch.equal(first.weight, second.weight)


@pytest.mark.parametrize("prefix", ["", "medusa_head.", "base_model.model.medusa_head."])
@pytest.mark.parametrize("name", ["medusa_lm_head.safetensors", "medusa_lm_head.pt"])
def test_files_folders_and_prefixes_are_read(tmp_path: Path, name: str, prefix: str) -> None:
    tensors = {prefix + key: tensor for key, tensor in head_tensors().items()}
    if name.endswith(".pt"):
        torch.save(tensors, tmp_path / name)
    else:
        save_tiny_heads(tmp_path / name, tensors)
    for path in (tmp_path, tmp_path / name):
        heads = heads_from_path(path)
        assert (heads.num_heads, heads.num_layers, heads.hidden_size) == (4, 2, HIDDEN_SIZE)


def test_the_tensors_win_over_a_config_that_contradicts_them(tmp_path: Path) -> None:
    save_tiny_heads(tmp_path / "medusa_lm_head.safetensors", head_tensors(num_heads=5))
    (tmp_path / "config.json").write_text(json.dumps({"medusa_num_heads": 2}))
    with pytest.warns(UserWarning, match="medusa_num_heads 2 where the tensors have 5"):
        assert heads_from_path(tmp_path).num_heads == 5


def broken(change: str) -> Tensors:
    tensors = head_tensors()
    if change == "unknown key":
        tensors["0.attention.weight"] = torch.zeros(1)
    elif change == "missing head":
        tensors = {key: value for key, value in tensors.items() if not key.startswith("1.")}
    elif change == "missing layer":
        del tensors["2.0.linear.weight"]
    elif change == "misshapen weight":
        tensors["1.0.linear.weight"] = torch.zeros(HIDDEN_SIZE, HIDDEN_SIZE + 1)
    elif change == "misshapen bias":
        tensors["1.0.linear.bias"] = torch.zeros(HIDDEN_SIZE + 1)
    elif change == "misshapen unembedding":
        tensors["1.2.weight"] = torch.zeros(VOCAB_SIZE, HIDDEN_SIZE + 1)
    elif change == "one head shares":
        del tensors["3.2.weight"]
    elif change == "one head projects":
        tensors["0.projection.weight"] = torch.zeros(HIDDEN_SIZE, HIDDEN_SIZE)
        tensors["0.projection.bias"] = torch.zeros(HIDDEN_SIZE)
    elif change == "empty":
        tensors = {}
    return tensors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("unknown key", "0.attention.weight"),
        ("missing head", "[0, 2, 3]"),
        ("missing layer", "2.0.linear"),
        ("misshapen weight", "head 1"),
        ("misshapen bias", "head 1"),
        ("misshapen unembedding", "1.2.weight"),
        ("one head shares", "differ"),
        ("one head projects", "differ"),
        ("empty", "[]"),
    ],
)
def test_what_does_not_fit_together_is_refused(change: str, message: str) -> None:
    with pytest.raises(HeadsError, match=re.escape(message)):
        heads_from_tensors(broken(change), "heads")


@pytest.mark.parametrize(
    "token_map",
    [
        torch.tensor([0, 1, VOCAB_SIZE]),
        torch.tensor([-1, 1, 2]),
        torch.tensor([1, 1, 2]),
        torch.tensor([[0, 1]]),
        torch.tensor([0.5, 1.0]),
        torch.tensor([], dtype=torch.int64),
    ],
)
def test_a_token_map_must_hold_different_token_ids(token_map: torch.Tensor) -> None:
    tensors = head_tensors(vocab_size=None) | {"token_map": token_map}
    with pytest.raises(HeadsError, match="token_map"):
        heads_from_tensors(tensors, "heads").check_fits(HIDDEN_SIZE, VOCAB_SIZE)


def test_heads_of_another_model_are_refused() -> None:
    heads = heads_from_tensors(head_tensors(), "heads")
    with pytest.raises(HeadsError, match="size 64, the backbone has 65"):
        heads.check_fits(65, VOCAB_SIZE)
    with pytest.raises(HeadsError, match="offers 300 tokens"):
        heads.check_fits(HIDDEN_SIZE, 301)


class Trap:
    """A pickle that writes a file when it is loaded as code."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.write_text, (self.path, "executed")


def test_a_pickle_with_code_in_it_is_refused_and_not_run(tmp_path: Path) -> None:
    sign = tmp_path / "sign"
    torch.save({"0.0.linear.weight": Trap(sign)}, tmp_path / "medusa_lm_head.pt")
    with pytest.raises(HeadsError, match="cannot read heads"):
        heads_from_path(tmp_path)
    assert not sign.exists()
    pickle.loads(pickle.dumps(Trap(sign)))
    assert sign.exists(), "the trap works, so it was not sprung"


@pytest.mark.parametrize("name", ["medusa_lm_head.safetensors", "medusa_lm_head.pt"])
@pytest.mark.parametrize("content", [b"", b"not a checkpoint at all"])
def test_damaged_files_are_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(HeadsError, match="cannot read heads"):
        heads_from_path(tmp_path)


def test_a_checkpoint_must_exist(tmp_path: Path) -> None:
    with pytest.raises(HeadsError, match="holds none of"):
        heads_from_path(tmp_path)
    with pytest.raises(HeadsError, match="no heads at"):
        heads_from_path(tmp_path / "nowhere")
    torch.save([1, 2], tmp_path / "medusa_lm_head.pt")
    with pytest.raises(HeadsError, match="dictionary of tensors"):
        heads_from_path(tmp_path)
