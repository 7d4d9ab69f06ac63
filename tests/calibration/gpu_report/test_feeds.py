"""Inputs of the graphs: they fit their types and shapes, and are the same at each call."""

import numpy as np
import pytest
from msgspec.structs import replace

from medusa_trt.calibration.gpu_report.feeds import count_rows, find_missing_type, make_feed
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.tensors import PAST, PAST_LENGTH


@pytest.mark.parametrize("graph", ["verify", "heads", "reduce"])
def test_each_input_fits_the_graph(tiny_bundle: Bundle, graph: str) -> None:
    feed, again = (make_feed(tiny_bundle, graph, 256) for _ in range(2))
    spec = tiny_bundle.manifest.graphs[graph]
    assert list(feed) == [tensor.name for tensor in spec.inputs]
    types = {"float": "float32", "double": "float64"}
    for tensor in spec.inputs:
        array = feed[tensor.name]
        assert array.dtype == types.get(tensor.dtype, tensor.dtype)
        assert len(array.shape) == len(tensor.shape)
        fixed = zip(array.shape, tensor.shape, strict=True)
        assert all(given == size for given, size in fixed if isinstance(size, int))
        np.testing.assert_array_equal(array, again[tensor.name])


def test_the_cache_has_text_before_the_step_and_room_for_it(tiny_bundle: Bundle) -> None:
    feed = make_feed(tiny_bundle, "verify", 256)
    past = int(feed[PAST_LENGTH][0])
    key = feed[f"{PAST}0.key"]
    assert key[:, :, :past].all() and not key[:, :, past:].any()
    assert past + tiny_bundle.tree.num_nodes <= count_rows(tiny_bundle) <= 256


def test_bfloat16_is_named(tiny_bundle: Bundle) -> None:
    spec = tiny_bundle.manifest.graphs["verify"]
    assert find_missing_type(spec) is None
    changed = replace(spec, inputs=[replace(spec.inputs[0], dtype="bfloat16")])
    assert find_missing_type(changed) == "bfloat16"
