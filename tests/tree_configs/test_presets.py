"""Presets, chains and cartesian trees by name, and every bad name."""

import itertools
import json
from collections import Counter
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medusa_trt.errors import TreeError
from medusa_trt.tree_configs.presets import cartesian_tree, chain_tree, list_presets, load_tree
from medusa_trt.tree_configs.tree import MAX_NODES, MedusaTree

# Nodes per depth without the root, from the published medusa_choices.
PUBLISHED = {
    "mc_sim_7b_63": (10, 28, 23, 2),
    "vicuna_7b_stage1": (10, 32, 20, 1),
    "vicuna_7b_stage1_ablation": (10, 21, 25, 7),
    "vicuna_7b_stage2": (10, 23, 23, 7),
    "vicuna_13b_stage1": (10, 29, 23, 1),
    "vicuna_13b_stage2": (10, 19, 25, 9),
    "vicuna_33b_stage1": (10, 34, 19),
    "vicuna_33b_stage2": (10, 24, 24, 5),
    "zephyr_stage2": (10, 27, 23, 3),
}
SMOLLM2_NUM_NODES = (4, 6, 8, 16, 32, 64)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_trees(name: str) -> None:
    tree = load_tree(name)
    per_depth = Counter(len(node) for node in tree.medusa_choices)
    assert tuple(per_depth[depth] for depth in sorted(per_depth)) == PUBLISHED[name]
    assert (tree.name, tree.num_nodes, tree.top_k) == (name, 64, 10)
    tree.check(num_heads=len(PUBLISHED[name]), top_k=10)


@pytest.mark.parametrize("num_nodes", SMOLLM2_NUM_NODES)
def test_smollm2_trees(num_nodes: int) -> None:
    tree = load_tree(f"smollm2_135m_{num_nodes}")
    assert tree.num_nodes == num_nodes
    tree.check(num_heads=3, top_k=24)


def test_greedily_built_smollm2_trees_contain_each_other() -> None:
    trees = [set(load_tree(f"smollm2_135m_{n}").medusa_choices) for n in SMOLLM2_NUM_NODES]
    for smaller, larger in itertools.pairwise(trees):
        assert smaller < larger


def test_preset_names_are_complete_and_in_natural_order() -> None:
    smollm2 = tuple(f"smollm2_135m_{n}" for n in SMOLLM2_NUM_NODES)
    assert set(list_presets()) == {*PUBLISHED, *smollm2}
    assert tuple(name for name in list_presets() if name in smollm2) == smollm2


@pytest.mark.parametrize("name", list_presets())
def test_presets_name_their_source(name: str) -> None:
    text = (resources.files("medusa_trt.tree_configs") / f"{name}.json").read_text("utf-8")
    assert list(json.loads(text)) == ["source", "medusa_choices"]


@pytest.mark.parametrize("tree", [load_tree("plain"), chain_tree(0), MedusaTree.from_choices([])])
def test_plain(tree: MedusaTree) -> None:
    assert (tree.num_nodes, tree.max_depth, tree.top_k) == (1, 0, 0)
    assert tree.parents.tolist() == [-1]
    assert tree.attn_mask.tolist() == [[True]]
    assert tree.retrieve_indices.tolist() == [[0]]
    assert tree.path_lengths.tolist() == [1]
    assert tree.tree_indices(0).tolist() == [0]
    tree.check(num_heads=0, top_k=0)


@given(st.integers(1, 12))
def test_chain(depth: int) -> None:
    tree = load_tree(f"chain-{depth}")
    assert (tree.num_nodes, tree.max_depth, tree.top_k) == (depth + 1, depth, 1)
    assert tree.retrieve_indices.tolist() == [list(range(depth + 1))]
    np.testing.assert_array_equal(tree.attn_mask, np.tri(depth + 1, dtype=bool))
    assert tree == chain_tree(depth)
    assert tree.name == f"chain-{depth}"


def test_cartesian() -> None:
    tree = load_tree("cartesian-2x3")
    second = [(a, b) for a in range(2) for b in range(3)]
    assert tree.medusa_choices == ((0,), (1,), *second)
    assert (tree.num_nodes, tree.max_depth, tree.top_k) == (9, 2, 3)
    assert tree == cartesian_tree([2, 3])
    assert tree.name == "cartesian-2x3"


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_cartesian_has_one_path_for_each_combination(widths: list[int]) -> None:
    tree = cartesian_tree(widths)
    assert len(tree.path_lengths) == np.prod(widths)
    assert (tree.path_lengths == len(widths) + 1).all()
    assert tree.top_k == max(widths)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("vicuna", "unknown tree 'vicuna'; use plain, chain-DEPTH, cartesian-AxB.*mc_sim_7b_63"),
        ("", "unknown tree ''"),
        ("chain-", "unknown tree 'chain-'"),
        ("chain--1", "unknown tree 'chain--1'"),
        ("cartesian-2x", "unknown tree 'cartesian-2x'"),
        ("../tree_configs/zephyr_stage2", "unknown tree"),
        ("chain-4096", "chain depth 4096 is out of range; use 0 to 4095"),
        ("cartesian-2x0", "cartesian widths 2x0 have a value below 1"),
        ("cartesian-99999x99999", f"cartesian widths 99999x99999 make more than {MAX_NODES} nodes"),
    ],
)
def test_bad_spec(spec: str, message: str) -> None:
    with pytest.raises(TreeError, match=message) as caught:
        load_tree(spec)
    assert "\n" not in str(caught.value)


def test_a_limit_is_checked_before_a_tree_is_made() -> None:
    assert load_tree("chain-7", max_nodes=8).num_nodes == 8
    with pytest.raises(TreeError, match="chain depth 8 is out of range; use 0 to 7"):
        load_tree("chain-8", max_nodes=8)
    with pytest.raises(TreeError, match="cartesian widths 2x3 make more than 8 nodes"):
        load_tree("cartesian-2x3", max_nodes=8)


@pytest.mark.parametrize("name", ["plain", "chain-3", "cartesian-2x3", "mc_sim_7b_63"])
def test_a_name_gives_the_same_object(name: str) -> None:
    assert load_tree(name) is load_tree(name)


def test_a_path_is_taken_and_other_things_are_refused(tmp_path: Path) -> None:
    (tmp_path / "tree.json").write_text("[[0]]")
    assert load_tree(tmp_path / "tree.json") == chain_tree(1)
    for wrong in (5, None, b"plain"):
        with pytest.raises(TreeError, match=r"the tree is .*: it must be text or a path"):
            load_tree(wrong)  # type: ignore[arg-type]


def test_bad_chain_and_cartesian_arguments() -> None:
    with pytest.raises(TreeError, match="chain depth -1 is out of range"):
        chain_tree(-1)
    with pytest.raises(TreeError, match="cartesian widths are empty; use the plain tree"):
        cartesian_tree([])
