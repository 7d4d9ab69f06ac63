"""Replies of onnxruntime-genai's worker, on a stand-in for the package."""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.stand_ins.fake_llama_cpp import next_token, reply_slowly

PAD = 16


class FakeGenai(ModuleType):
    """The classes of `onnxruntime_genai` that the worker uses; padding is no part of a text.

    Attributes:
        overlay: the last change of a config.
    """

    def __init__(self) -> None:
        super().__init__("onnxruntime_genai")
        self.overlay: dict[str, Any] = {}
        self.Model = lambda config: config

    def Config(self, folder: str) -> SimpleNamespace:
        def keep(text: str) -> None:
            self.overlay = json.loads(text)["model"]

        return SimpleNamespace(clear_providers=lambda: None, overlay=keep)

    class GeneratorParams:
        def __init__(self, model: object) -> None:
            self.options: dict[str, Any] = {}

        def set_search_options(self, **options: Any) -> None:
            assert options["do_sample"] is False
            self.options = options

    class Generator:
        def __init__(self, model: object, params: "FakeGenai.GeneratorParams") -> None:
            self._options = params.options
            self._texts: list[list[int]] = []

        def append_tokens(self, rows: Any) -> None:
            assert len(rows) == self._options.get("batch_size", 1)
            self._texts = [[token for token in row if token != PAD] for row in rows.tolist()]

        def generate_next_token(self) -> None:
            for text in self._texts:
                text.append(next_token(text))
                assert len(text) <= self._options["max_length"]

        def get_next_tokens(self) -> Any:
            return np.array([text[-1] for text in self._texts], np.int32)


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> FakeGenai:
    package = FakeGenai()
    monkeypatch.setitem(sys.modules, "onnxruntime_genai", package)
    return package


@pytest.fixture
def worker(package: FakeGenai, monkeypatch: pytest.MonkeyPatch) -> Any:
    name = "peer.workers.genai_worker"
    monkeypatch.delitem(sys.modules, name, raising=False)
    module = importlib.import_module(name)
    monkeypatch.delitem(sys.modules, name)
    return module


@pytest.fixture
def model(tmp_path: Path) -> str:
    config = {"model": {"vocab_size": PAD + 1}}
    (tmp_path / "genai_config.json").write_text(json.dumps(config))
    return str(tmp_path)


PROMPTS = [[1, 2, 3], [5], [4, 4], [9, 8, 7, 6], [2]]


def test_a_reply_has_the_requested_length_and_no_end(
    worker: Any, package: FakeGenai, model: str
) -> None:
    packages, start = worker.load(model=model, max_length=20, threads=3)
    assert "onnxruntime-genai" in packages
    for prompt in PROMPTS:
        assert list(start(prompt, 9)) == [[token] for token in reply_slowly(prompt, 9)]
    assert package.overlay["eos_token_id"] == package.overlay["pad_token_id"] == PAD
    assert package.overlay["decoder"]["session_options"] == {"intra_op_num_threads": 3}


@pytest.mark.parametrize("concurrency", [1, 2, 9])
def test_batches_are_static_and_their_replies_those_of_each_prompt_alone(
    worker: Any, model: str, concurrency: int
) -> None:
    _, start = worker.load_many(model=model, max_length=20, threads=1, concurrency=concurrency)
    replies: list[list[int]] = [[] for _ in PROMPTS]
    steps = list(start(PROMPTS, 6))
    assert len(steps) == 6 * -(-len(PROMPTS) // concurrency)
    for step in steps:
        assert len(step) <= concurrency
        for index, tokens in step.items():
            replies[index] += tokens
    assert replies == [reply_slowly(prompt, 6) for prompt in PROMPTS]
