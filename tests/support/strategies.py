"""Hypothesis strategies that several test modules share."""

from hypothesis import strategies as st

from medusa_trt.tree_configs import MedusaTree

Choices = list[tuple[int, ...]]


def medusa_choices(
    *, max_nodes: int = 24, max_depth: int = 5, max_child: int = 12, min_nodes: int = 0
) -> st.SearchStrategy[Choices]:
    """Valid trees as a list of paths without the root, parents before their children.

    Args:
        max_nodes: most paths in the list.
        max_depth: longest path; the heads a model must have.
        max_child: largest child index; a head must offer `max_child + 1` candidates.
        min_nodes: fewest paths in the list, at most `max_child + 1`.
    """
    growth = st.tuples(st.integers(0, max_nodes), st.integers(0, max_child))
    return (
        st.lists(growth, max_size=max_nodes)
        .map(lambda steps: _grow(steps, max_depth))
        .filter(lambda choices: len(choices) >= min_nodes)
    )


def medusa_trees(
    *, max_nodes: int = 24, max_depth: int = 5, max_child: int = 12, min_nodes: int = 0
) -> st.SearchStrategy[MedusaTree]:
    """Trees over `medusa_choices` with the same limits."""
    return medusa_choices(
        max_nodes=max_nodes, max_depth=max_depth, max_child=max_child, min_nodes=min_nodes
    ).map(MedusaTree.from_choices)


def _grow(steps: list[tuple[int, int]], max_depth: int) -> Choices:
    """Adds one child per (parent, child index) step; steps that do not fit add nothing."""
    nodes: Choices = [()]
    for parent, child in steps:
        node = (*nodes[parent % len(nodes)], child)
        if len(node) <= max_depth and node not in nodes:
            nodes.append(node)
    return nodes[1:]
