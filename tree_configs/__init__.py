"""Draft trees: which candidates of which heads one decode step verifies. Needs only numpy."""

from medusa_trt.tree_configs.presets import cartesian_tree, chain_tree, list_presets, load_tree
from medusa_trt.tree_configs.tree import HEADS_TREE_FILE, PAD_NODE, MedusaTree

__all__ = [
    "HEADS_TREE_FILE",
    "PAD_NODE",
    "MedusaTree",
    "cartesian_tree",
    "chain_tree",
    "list_presets",
    "load_tree",
]
