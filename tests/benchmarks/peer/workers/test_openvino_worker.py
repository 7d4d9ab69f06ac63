"""The cache of OpenVINO's worker, on a stand-in for a request."""

import importlib
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest


class Request:
    """Keeps the length of its cache, and checks that the inputs agree with it."""

    def __init__(self) -> None:
        self.length, self.steps = 0, []  # type: ignore[var-annotated]

    def reset_state(self) -> None:
        self.length = 0

    def infer(self, inputs: dict[str, Any], share_inputs: bool) -> None:
        rows = inputs["input_ids"].shape[1]
        assert inputs["position_ids"].tolist() == [list(range(self.length, self.length + rows))]
        self.length += rows
        assert inputs["attention_mask"].shape == (1, self.length)
        assert inputs["wanted"][-1] == rows - 1
        self.steps.append((self.length - rows, rows, len(inputs["wanted"])))

    def get_output_tensor(self, index: int) -> Any:
        return type("Tensor", (), {"data": np.zeros((1, 1, 3))})


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setitem(sys.modules, "openvino", ModuleType("openvino"))
    name = "peer.workers.openvino_worker"
    monkeypatch.delitem(sys.modules, name, raising=False)
    module = importlib.import_module(name)
    monkeypatch.delitem(sys.modules, name)
    return module


@pytest.mark.parametrize("past", [256, 2048])
def test_the_past_stays_within_a_third(worker: Any, past: int) -> None:
    request = Request()
    sequence = worker._Sequence(request, past)
    for _ in range(30):
        for rows in (1, 4, 8, 16, 64):
            sequence.fit(rows)
            sequence.evaluate(rows, rows)
            before, count, num_wanted = request.steps[-1]
            assert count == num_wanted == rows
            assert past <= before <= (past + rows) * 4 / 3
    num_fills = sum(step == (0, past, 1) for step in request.steps)
    assert 1 <= num_fills < 35


def test_a_prompt_is_read_into_an_empty_cache(worker: Any) -> None:
    request = Request()
    sequence = worker._Sequence(request, 0)
    for _ in range(3):
        sequence.fit(512)
        sequence.evaluate(512, 1)
    assert request.steps == [(0, 512, 1)] * 3
