"""The files of a bundle's graphs: each weight once, and the interface of the manifest."""

import itertools
from pathlib import Path

import onnx
import onnxruntime
import pytest
from support.bundle_steps import exported
from support.model_families import config, weighted_model
from support.tiny_models import (
    HIDDEN_SIZE,
    VOCAB_SIZE,
    head_tensors,
)

from medusa_trt.export.graphs.graph_files import describe_graph
from medusa_trt.runtime import tensors as names
from medusa_trt.runtime.bundle import Bundle


def external_ranges(bundle: Bundle, graph: str) -> dict[str, tuple[int, int]]:
    """Where each external weight of a graph begins and ends in the bundle's file of weights."""
    model = onnx.load(bundle.graph_path(graph), load_external_data=False)
    ranges = {}
    for tensor in model.graph.initializer:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if entries:
            assert entries["location"] == names.WEIGHTS_FILE
            start = int(entries["offset"])
            ranges[tensor.name] = start, start + int(entries["length"])
    return ranges


@pytest.mark.parametrize("tied", [False, True])
def test_each_weight_is_stored_once(tied: bool, tmp_path: Path) -> None:
    model = weighted_model(config("granite", logits_scaling=7.0, tie_word_embeddings=tied))
    bundle = exported(model, tmp_path, tensors=head_tensors(vocab_size=None))
    verify_ranges = external_ranges(bundle, "verify")
    heads_ranges = external_ranges(bundle, "heads")
    unembedding = heads_ranges["unembedding"]
    assert unembedding in verify_ranges.values()
    assert unembedding[1] - unembedding[0] == VOCAB_SIZE * HIDDEN_SIZE * 4
    ranges = sorted({*verify_ranges.values(), *heads_ranges.values()})
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(ranges))
    sizes = [end - start for start, end in ranges]
    assert sizes.count(VOCAB_SIZE * HIDDEN_SIZE * 4) == (1 if tied else 2)
    assert ranges[-1][1] == (bundle.path / names.WEIGHTS_FILE).stat().st_size
    for graph in names.GRAPH_FILES:
        assert bundle.graph_path(graph).stat().st_size < 64 * 1024


def test_the_graphs_have_the_interface_of_the_manifest(tiny_bundle: Bundle) -> None:
    layers = range(tiny_bundle.manifest.model.num_layers)
    cache = [(layer, kind) for layer in layers for kind in ("key", "value")]
    inputs = [names.INPUT_IDS, names.TREE_MASK, names.POSITION_OFFSETS, names.PAST_LENGTH]
    inputs += [names.ROWS, *(names.past_name(*place) for place in cache)]
    outputs = [names.ARGMAX, names.HIDDEN, names.LOGITS]
    outputs += [names.present_name(*place) for place in cache]
    expected = {
        "verify": (inputs, outputs),
        "heads": ([names.HIDDEN], [names.DRAFT_IDS, names.DRAFT_LOGPROBS]),
        "tree": ([], [names.TREE_MASK, names.POSITION_OFFSETS]),
    }
    for graph, interface in expected.items():
        session = onnxruntime.InferenceSession(tiny_bundle.graph_path(graph))
        spec = tiny_bundle.manifest.graphs[graph]
        assert describe_graph(tiny_bundle.path, graph) == spec
        for found, listed, wanted in zip(
            (session.get_inputs(), session.get_outputs()),
            (spec.inputs, spec.outputs),
            interface,
            strict=True,
        ):
            assert [value.name for value in found] == [value.name for value in listed] == wanted
            assert [value.shape for value in found] == [value.shape for value in listed]
