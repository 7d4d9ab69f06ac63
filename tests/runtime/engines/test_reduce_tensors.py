"""Reductions: rows that the graph leaves to the host."""

import numpy as np
from numpy.typing import NDArray

from medusa_trt.runtime.engines.reduce_tensors import copy_outputs, make_empty_reductions
from medusa_trt.runtime.options import SamplingOptions
from medusa_trt.runtime.sampling import token_from_logits


def test_rows_that_the_graph_does_not_cover_are_drawn_on_the_host() -> None:
    logits = 3 * np.random.default_rng(0).normal(size=(6, 300)).astype(np.float32)
    uniforms = np.random.default_rng(0).random((2, 3))
    options = SamplingOptions(temperature=1.5, top_p=0.95)
    rows_read = []

    def read_row(row: int) -> NDArray[np.float32]:
        rows_read.append(row)
        return np.asarray(logits[row])

    outputs = {
        "sampled": np.full(6, -1),
        "covered": np.array([True, False, True, True, True, False]),
        "entropy": np.zeros(6, np.float32),
        "candidate_logprob": np.zeros(6, np.float32),
    }
    reductions = make_empty_reductions((3, 3))
    copy_outputs(reductions, (options, slice(1, 3)), outputs, uniforms, read_row)
    assert not reductions.sampled[0].any()
    sampled = reductions.sampled[1:]
    assert rows_read == [1, 5]
    for row in range(6):
        drawn = token_from_logits(logits[row], options, uniforms.flat[row])
        assert sampled.flat[row] == (drawn if row in rows_read else -1)
