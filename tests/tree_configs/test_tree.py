"""Arrays of a tree against the slow reference, and every error that a user can cause."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.reference.tree_buffers import tree_buffers
from support.strategies import Choices, medusa_choices, medusa_trees

from medusa_trt.errors import TreeError
from medusa_trt.tree_configs import (
    PAD_NODE,
    MedusaTree,
    list_presets,
    load_tree,
)
from medusa_trt.tree_configs.tree import MAX_NODES

ARRAYS = ("parents", "attn_mask", "position_offsets", "retrieve_indices", "path_lengths")


def valid_entries(tree: MedusaTree) -> NDArray[np.bool_]:
    """(num_paths, max_depth + 1) bool, false at the padding of `retrieve_indices`."""
    valid: NDArray[np.bool_] = np.arange(tree.max_depth + 1) < tree.path_lengths[:, None]
    return valid


def assert_matches_reference(tree: MedusaTree, choices: Choices, top_k: int) -> None:
    expected = tree_buffers(choices, top_k)
    valid = valid_entries(tree)
    np.testing.assert_array_equal(tree.attn_mask, expected.attn_mask)
    np.testing.assert_array_equal(tree.position_offsets, expected.position_ids)
    np.testing.assert_array_equal(tree.tree_indices(top_k), expected.tree_indices)
    np.testing.assert_array_equal(
        np.where(valid, tree.retrieve_indices, -1), expected.retrieve_indices
    )
    assert (tree.retrieve_indices[~valid] == PAD_NODE).all()


@given(medusa_choices(), st.integers(0, 20))
def test_arrays_match_reference(choices: Choices, spare_top_k: int) -> None:
    tree = MedusaTree.from_choices(choices)
    assert_matches_reference(tree, choices, tree.top_k + spare_top_k)


@pytest.mark.parametrize("name", list_presets())
def test_presets_match_reference(name: str) -> None:
    tree = load_tree(name)
    assert_matches_reference(tree, list(tree.medusa_choices), max(10, tree.top_k))


@given(st.data())
def test_order_of_choices_does_not_matter(data: st.DataObject) -> None:
    choices = data.draw(medusa_choices())
    tree = MedusaTree.from_choices(choices)
    shuffled = MedusaTree.from_choices(data.draw(st.permutations(choices)), name="shuffled")
    assert shuffled == tree
    assert hash(shuffled) == hash(tree)
    for attribute in ARRAYS:
        np.testing.assert_array_equal(getattr(shuffled, attribute), getattr(tree, attribute))


@given(medusa_trees())
def test_choices_are_sorted_and_parents_precede(tree: MedusaTree) -> None:
    nodes = [(), *tree.medusa_choices]
    assert nodes == sorted(nodes, key=lambda node: (len(node), node))
    assert tree.num_nodes == len(nodes)
    assert tree.parents[0] == -1
    for index in range(1, tree.num_nodes):
        assert tree.parents[index] < index
        assert nodes[tree.parents[index]] == nodes[index][:-1]


@given(medusa_trees())
def test_every_leaf_is_the_end_of_exactly_one_row(tree: MedusaTree) -> None:
    leaves = set(range(tree.num_nodes)) - set(tree.parents.tolist())
    ends = [int(row[length - 1]) for row, length in zip(*rows(tree), strict=True)]
    assert sorted(ends) == sorted(leaves)


@given(medusa_trees())
def test_every_row_walks_from_the_root_by_parents(tree: MedusaTree) -> None:
    for row, length in zip(*rows(tree), strict=True):
        path = row[:length]
        assert path[0] == 0
        np.testing.assert_array_equal(tree.parents[path[1:]], path[:-1])


def rows(tree: MedusaTree) -> tuple[list[NDArray[np.int64]], list[int]]:
    return list(tree.retrieve_indices), tree.path_lengths.tolist()


@given(medusa_trees())
def test_tree_indices_stay_within_their_head(tree: MedusaTree) -> None:
    top_k = tree.top_k + 1
    for node, index in zip(tree.medusa_choices, tree.tree_indices(top_k)[1:], strict=True):
        assert divmod(int(index) - 1, top_k) == (len(node) - 1, node[-1])


@given(medusa_trees(max_nodes=8))
def test_reading_padding_raises(tree: MedusaTree) -> None:
    """Fault 1 of the paper's code: its padding of -1 silently reads the last node."""
    per_node = np.zeros(tree.num_nodes, dtype=np.int64)
    padding = tree.retrieve_indices[~valid_entries(tree)]
    for past_length in (0, 1000):
        for index in (padding + past_length, (padding + past_length).astype(np.int32)):
            if index.size:
                with pytest.raises(IndexError):
                    per_node[index]


@pytest.mark.parametrize("spec", ["plain", "chain-4", "mc_sim_7b_63"])
def test_dtypes_and_read_only(spec: str) -> None:
    tree = load_tree(spec)
    for attribute in ARRAYS:
        array = getattr(tree, attribute)
        assert array.dtype == (np.bool_ if attribute == "attn_mask" else np.int64)
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0
    assert tree.tree_indices(10).dtype == np.int64
    with pytest.raises(dataclasses.FrozenInstanceError):
        tree.name = "other"  # type: ignore[misc]


def test_numpy_integers_become_plain_ints() -> None:
    choices: list[Any] = [*np.array([[0], [2], [1]], dtype=np.int32), (np.uint8(1), np.int64(0))]
    tree = MedusaTree.from_choices(choices)
    assert tree.medusa_choices == ((0,), (1,), (2,), (1, 0))
    assert {type(child) for node in tree.medusa_choices for child in node} == {int}


def test_the_constructor_validates_and_sorts_too() -> None:
    tree = MedusaTree(medusa_choices=((0, 0), (0,)))
    assert tree == MedusaTree.from_choices([[0], [0, 0]])
    with pytest.raises(TreeError, match="no parent"):
        MedusaTree(medusa_choices=((0, 0),))


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ([[0], []], r"node \[\] is the root, which is implied; remove it"),
        ([[0], [1], [0]], r"node \[0\] is listed twice; remove one"),
        ([[0], [np.int64(0)]], r"node \[0\] is listed twice"),
        ([[0], [1, 0]], r"node \[1, 0\] has no parent; add \[1\] to medusa_choices"),
        ([[0], [0, 0, 0]], r"node \[0, 0, 0\] has no parent; add \[0, 0\]"),
        ([[0], [0, -1]], r"node \[0, -1\] has child index -1, which is negative"),
        ([[0], [0, 1.0]], r"node \[0, 1\.0\] has child index 1\.0, which is not an integer"),
        ([["0"]], r"node \['0'\] has child index '0', which is not an integer"),
        ([[None]], r"child index None, which is not an integer"),
        ([[True]], r"node \[True\] has child index True, which is not an integer"),
        ([np.array([True])], r"which is not an integer"),
        ([[2**31]], r"child index 2147483648, which is too large"),
        ([0, 1], r"node 0 is not a path; write each node as a list"),
        (["00"], r"node '00' is not a path"),
        ([{"a": 1}], r"node \{'a': 1\} is not a path"),
        (([child] for child in range(MAX_NODES)), rf"more than {MAX_NODES} nodes"),
    ],
)
def test_bad_choices(choices: Any, message: str) -> None:
    with pytest.raises(TreeError, match=message) as caught:
        MedusaTree.from_choices(choices)
    assert "\n" not in str(caught.value)


def test_the_largest_tree_is_allowed() -> None:
    tree = MedusaTree.from_choices([[child] for child in range(MAX_NODES - 1)])
    assert tree.num_nodes == MAX_NODES


def test_check_names_node_value_and_remedy() -> None:
    tree = MedusaTree.from_choices([[0], [3], [0, 0], [0, 11]], name="mine")
    tree.check(num_heads=2, top_k=12)
    with pytest.raises(
        TreeError,
        match=r"tree 'mine': node \[0, 0\] has depth 2 but there are 1 heads; "
        "use a shallower tree or more heads",
    ):
        tree.check(num_heads=1, top_k=12)
    with pytest.raises(
        TreeError,
        match=r"tree 'mine': node \[0, 11\] has child index 11 but each head offers 10 candidates; "
        "use a narrower tree or a top-k of at least 12",
    ):
        tree.check(num_heads=2, top_k=10)


def test_child_index_never_reads_the_next_head() -> None:
    """Fault 3 of the paper's code: child index 10 at TOPK = 10 is head 1's first candidate."""
    with pytest.raises(TreeError, match=r"node \[10\] has child index 10"):
        MedusaTree.from_choices([[10]]).tree_indices(10)


@given(medusa_trees())
def test_json_round_trip(tree: MedusaTree) -> None:
    assert MedusaTree.from_json(tree.to_json()) == tree
    assert MedusaTree.from_json(json.dumps(tree.medusa_choices)) == tree


def test_file_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    tree = load_tree("vicuna_7b_stage2")
    tree.save(path)
    loaded = load_tree(str(path))
    assert (loaded, loaded.name) == (tree, "mine")
    assert MedusaTree.load(path, name="other").name == "other"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"medusa_choices": [[0],', "not valid JSON: "),
        (b"", "not valid JSON: "),
        (b"[" * 100_000, "not valid JSON: "),
        (b"5", 'expected {"medusa_choices": '),
        (b"{}", 'expected {"medusa_choices": '),
        (b'{"medusa_choices": "abc"}', 'expected {"medusa_choices": '),
        (b'{"medusa_choice": [[0]]}', "unknown key 'medusa_choice'; the keys are medusa_choices"),
        (b"[0, 1]", "node 0 is not a path"),
        (b"[[0], [0.5]]", "child index 0.5, which is not an integer"),
        (b"[[true]]", "child index True, which is not an integer"),
        (b"[[1, 0]]", "node [1, 0] has no parent"),
    ],
)
def test_bad_file(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    with pytest.raises(TreeError) as caught:
        load_tree(str(path))
    assert str(caught.value).startswith(f"bad tree file {str(path)!r}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unreadable_files(tmp_path: Path) -> None:
    not_text = tmp_path / "latin.json"
    not_text.write_bytes(b"\xff\xfe")
    folder = tmp_path / "folder.json"
    folder.mkdir()
    missing = tmp_path / "missing.json"
    for path in (not_text, folder, missing):
        with pytest.raises(TreeError, match="cannot read tree file") as caught:
            load_tree(str(path))
        assert str(path) in str(caught.value)
    with pytest.raises(TreeError, match="cannot read tree file"):
        load_tree("null\0byte.json")


def test_unwritable_file(tmp_path: Path) -> None:
    with pytest.raises(TreeError, match=r"cannot write tree file .*No such file"):
        load_tree("plain").save(tmp_path / "missing" / "tree.json")
