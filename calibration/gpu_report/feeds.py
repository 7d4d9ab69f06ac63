"""Inputs of each graph for a comparison: a step over the bundle's tree behind some text."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from medusa_trt.runtime import tensors as names
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.engines.reduce_tensors import (
    allocate_inputs,
    find_parent_rows,
    write_inputs,
)
from medusa_trt.runtime.manifest import GraphSpec
from medusa_trt.runtime.options import SamplingOptions

Feed = dict[str, NDArray[Any]]
"""Arrays by the names of a graph's inputs."""

_TYPES = {"float": "float32", "double": "float64"}
_PAST = 64
"""Tokens in the cache before the step."""

_SAMPLING = SamplingOptions(temperature=0.8, top_k=40)


def count_rows(bundle: Bundle) -> int:
    """Counts the cache rows that the step needs, rounded up as engines need it."""
    return -(-(_PAST + bundle.tree.num_nodes) // 16) * 16


def find_missing_type(spec: GraphSpec) -> str | None:
    """Finds a type of an input or output that numpy does not have; None if there is none."""
    types = {tensor.dtype for tensor in (*spec.inputs, *spec.outputs)}
    return "bfloat16" if "bfloat16" in types else None


def make_feed(bundle: Bundle, graph: str, capacity: int) -> Feed:
    """Makes the inputs of a graph, the same ones at every call.

    Args:
        bundle: the bundle.
        graph: "verify", "heads" or "reduce".
        capacity: rows of a slot of the KV cache, at least `count_rows`.
    """
    spec, rng = bundle.manifest.graphs[graph], np.random.default_rng(0)
    if graph == "reduce":
        return _make_reduce_feed(bundle, spec, rng)
    model, tree = bundle.manifest.model, bundle.tree
    num_nodes = tree.num_nodes
    num_read = min(capacity, max(2, count_rows(bundle)))
    sizes = {"num_nodes": num_nodes, "num_rows": num_nodes, "num_read": num_read}
    values: dict[str, Any] = {
        names.INPUT_IDS: rng.integers(0, model.vocab_size, (1, num_nodes)),
        names.ROOT_IDS: rng.integers(0, model.vocab_size, 1),
        names.TREE_MASK: tree.additive_mask,
        names.POSITION_OFFSETS: tree.position_offsets,
        names.PAST_LENGTH: _PAST,
        names.ROWS: np.arange(num_nodes),
        names.CACHE_POSITIONS: np.arange(num_read),
    }
    feed: Feed = {}
    for tensor in spec.inputs:
        sizes_here = sizes | {"capacity": capacity}
        shape = [
            size if isinstance(size, int) else sizes_here.get(size, 1) for size in tensor.shape
        ]
        array = np.zeros(shape, _TYPES.get(tensor.dtype, tensor.dtype))
        if tensor.name.startswith(names.PAST):
            array[:, :, :_PAST] = rng.normal(0, 0.5, array[:, :, :_PAST].shape)
        elif tensor.name == names.HIDDEN:
            array[...] = rng.normal(0, 1, shape)
        else:
            array[...] = values[tensor.name]
        feed[tensor.name] = array
    return feed


def _make_reduce_feed(bundle: Bundle, spec: GraphSpec, rng: np.random.Generator) -> Feed:
    tree, vocab_size = bundle.tree, bundle.manifest.model.vocab_size
    num_nodes = tree.num_nodes
    feed = allocate_inputs(spec, num_nodes)
    write_inputs(
        feed,
        rng.integers(0, vocab_size, (1, num_nodes)),
        find_parent_rows(tree, slice(0, 1), num_nodes),
        _SAMPLING,
        rng.random((1, num_nodes)),
        vocab_size,
    )
    logits = rng.normal(0, 3, (num_nodes, vocab_size)).astype(np.float32)
    return {
        tensor.name: logits if tensor.name == names.LOGITS else feed[tensor.name]
        for tensor in spec.inputs
    }
