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


def cartesian_tree(widths: Sequence[int]) -> MedusaTree:
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
    if num_nodes > MAX_NODES:
        raise TreeError(
            f"cartesian widths {spec} make more than {MAX_NODES} nodes; use smaller widths"
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


def load_tree(spec: str | Path) -> MedusaTree:
    """Loads a tree by the name that a user gives.

    Args:
        spec: one of `list_presets()`, `plain` (no draft), `chain-4`, `cartesian-2x3`, or a
            path that ends in `.json`.

    Raises:
        TreeError: the spec is unknown, or the file holds no valid tree.
    """
    spec = str(read_value("the tree", spec, str | Path, TreeError))
    if spec == "plain":
        return MedusaTree.from_choices((), name="plain")
    if spec.endswith(".json"):
        return MedusaTree.load(spec)
    if chain := re.fullmatch(r"chain-([0-9]{1,9})", spec):
        return chain_tree(int(chain[1]))
    if re.fullmatch(r"cartesian-[0-9]{1,9}(x[0-9]{1,9})*", spec):
        return cartesian_tree([int(width) for width in spec.removeprefix("cartesian-").split("x")])
    if spec in list_presets():
        file = resources.files("medusa_trt.tree_configs") / f"{spec}.json"
        return MedusaTree.from_json(file.read_text(encoding="utf-8"), name=spec)
    raise TreeError(
        f"unknown tree {spec!r}; use plain, chain-DEPTH, cartesian-AxB, a path to a .json file, "
        f"or one of {', '.join(list_presets())}"
    )


def _natural_key(name: str) -> list[tuple[int, str]]:
    """Sorts `_8` before `_16`."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]
