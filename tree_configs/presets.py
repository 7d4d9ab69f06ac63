"""Loads trees by name: presets of this folder, chains, cartesian products, and files."""

import itertools
import re
from collections.abc import Sequence
from functools import lru_cache
from importlib import resources
from pathlib import Path

from medusa_trt.errors import TreeError
from medusa_trt.tree_configs.tree import MAX_NODES, MedusaTree
from medusa_trt.types_of_options import read_value


@lru_cache(maxsize=256)
def chain_tree(depth: int) -> MedusaTree:
    """Makes a chain: one node at each depth, the best candidate of each head.

    Source: Stern et al. 2018, "Blockwise Parallel Decoding". Depth 0 is plain decoding. The mask
    of a chain is the causal mask, so a chain also describes ordinary text. Trees are immutable, so
    they are cached.

    Raises:
        TreeError: the depth is out of range.
    """
    if not 0 <= depth < MAX_NODES:
        raise TreeError(f"chain depth {depth} is out of range; use 0 to {MAX_NODES - 1}")
    return MedusaTree.from_choices(
        ((0,) * length for length in range(1, depth + 1)), name=f"chain-{depth}"
    )


def cartesian_tree(widths: Sequence[int], *, max_nodes: int = MAX_NODES) -> MedusaTree:
    """Combines the `widths[0]` best candidates of head 0 with the `widths[1]` of head 1, and so on.

    Source: the Medusa blog post, whose example is 2x3, and section 2.1.2 of the paper.

    Raises:
        TreeError: there are no widths, a width is below 1, or there are too many nodes.
    """
    if not widths:
        raise TreeError("cartesian widths are empty; use the plain tree for plain decoding")
    spec = "x".join(map(str, widths))
    if any(width < 1 for width in widths):
        raise TreeError(f"cartesian widths {spec} have a value below 1; use widths of at least 1")
    num_nodes = 1 + sum(itertools.accumulate(widths, lambda total, width: total * width))
    if num_nodes > max_nodes:
        raise TreeError(
            f"cartesian widths {spec} make more than {max_nodes} nodes; use smaller widths"
        )
    ranges = [range(width) for width in widths]
    return MedusaTree.from_choices(
        (
            path
            for depth in range(1, len(widths) + 1)
            for path in itertools.product(*ranges[:depth])
        ),
        name=f"cartesian-{spec}",
    )


def list_presets() -> tuple[str, ...]:
    """Names of the JSON trees beside this module, sorted with numbers in numeric order."""
    files = resources.files("medusa_trt.tree_configs").iterdir()
    names = (file.name.removesuffix(".json") for file in files if file.name.endswith(".json"))
    return tuple(sorted(names, key=_natural_key))


def load_tree(spec: str | Path, *, max_nodes: int = MAX_NODES) -> MedusaTree:
    """Loads a tree by the name that a user gives.

    The same name gives the same object, so that sequences that name one tree share their steps.

    Args:
        spec: one of `list_presets()`, `plain` (no draft), `chain-4`, `cartesian-2x3`, or a
            path that ends in `.json`.
        max_nodes: the largest tree that is made of a name; a large one takes seconds.

    Raises:
        TreeError: the spec is unknown, the tree is too large, or the file holds no valid tree.
    """
    spec = str(read_value("the tree", spec, str | Path, TreeError))
    return MedusaTree.load(spec) if spec.endswith(".json") else _make_tree(spec, max_nodes)


@lru_cache(maxsize=64)
def _make_tree(name: str, max_nodes: int) -> MedusaTree:
    if name == "plain":
        return MedusaTree.from_choices((), name="plain")
    if chain := re.fullmatch(r"chain-([0-9]{1,9})", name):
        if (depth := int(chain[1])) >= max_nodes:
            raise TreeError(f"chain depth {depth} is out of range; use 0 to {max_nodes - 1}")
        return chain_tree(depth)
    if re.fullmatch(r"cartesian-[0-9]{1,9}(x[0-9]{1,9})*", name):
        widths = [int(width) for width in name.removeprefix("cartesian-").split("x")]
        return cartesian_tree(widths, max_nodes=max_nodes)
    if name in list_presets():
        file = resources.files("medusa_trt.tree_configs") / f"{name}.json"
        return MedusaTree.from_json(file.read_text(encoding="utf-8"), name=name)
    raise TreeError(
        f"unknown tree {name!r}; use plain, chain-DEPTH, cartesian-AxB, a path to a .json file, "
        f"or one of {', '.join(list_presets())}"
    )


def _natural_key(name: str) -> list[tuple[int, str]]:
    """Sorts `_8` before `_16`."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]
