"""The description of a verified step."""

from hypothesis import given
from hypothesis import strategies as st

from medusa_trt.runtime.decoding.growth import GrownTree
from medusa_trt.runtime.decoding.tracing import trace_step
from medusa_trt.tree_configs import MedusaTree, chain_tree

TREE = MedusaTree.from_choices([(0,), (1,), (0, 0), (0, 1), (1, 0), (0, 1, 0)])


@given(st.lists(st.integers(0, 3), max_size=4), st.lists(st.integers(0, 3), min_size=7, max_size=7))
def test_a_node_is_copied_if_its_whole_path_is(copied: list[int], tokens: list[int]) -> None:
    step = trace_step(TREE, tokens, copied, [0], 9)
    assert step.parents == TREE.parents.tolist()
    for node, is_copied in enumerate(step.is_copied):
        path, ancestor = [tokens[node]], step.parents[node]
        while ancestor > 0:
            path.insert(0, tokens[ancestor])
            ancestor = step.parents[ancestor]
        assert is_copied == (node > 0 and path == copied[: len(path)])


def test_the_root_is_no_part_of_the_accepted_path() -> None:
    step = trace_step(chain_tree(2), (5, 6, 7), (6, 8), [0, 1], 4)
    assert step.tokens == [5, 6, 7] and step.is_copied == [False, True, False]
    assert step.accepted == [1] and step.bonus_token == 4


def test_nodes_that_fill_a_tree_up_are_left_out() -> None:
    tree = GrownTree([(1, 2), (4, 4), (4, 4), (4, 4)], chain_tree(3).position_offsets)
    step = trace_step(tree, [5, 6, 5, 5], (), [0], 4)
    assert step.tokens == [5, 6] and step.parents == [-1, 0]
