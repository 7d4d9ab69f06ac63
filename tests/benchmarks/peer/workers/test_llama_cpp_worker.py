"""Replies of llama.cpp's worker against a loop over tokens, on a stand-in for the library."""

import importlib
import sys
from types import ModuleType
from typing import Any

import pytest
from support.stand_ins.fake_llama_cpp import FakeLlamaCpp, LookupDecoding, reply_slowly

PROMPTS = [[1, 2, 3, 1, 2, 3, 1, 2], [5], [4, 4], [9, 8, 7, 6]]


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> FakeLlamaCpp:
    library, speculative = FakeLlamaCpp(), ModuleType("llama_cpp.llama_speculative")
    speculative.LlamaPromptLookupDecoding = LookupDecoding  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "llama_cpp", library)
    monkeypatch.setitem(sys.modules, speculative.__name__, speculative)
    return library


@pytest.fixture
def worker(library: FakeLlamaCpp, monkeypatch: pytest.MonkeyPatch) -> Any:
    name = "peer.workers.llama_cpp_worker"
    monkeypatch.delitem(sys.modules, name, raising=False)
    module = importlib.import_module(name)
    monkeypatch.delitem(sys.modules, name)
    return module


@pytest.mark.parametrize("num_lookup", [0, 1, 4])
def test_replies_are_greedy_with_drafts_or_without(
    worker: Any, library: FakeLlamaCpp, num_lookup: int
) -> None:
    _, start = worker.load(model="m", max_length=90, threads=1, num_lookup=num_lookup)
    for prompt in PROMPTS:
        library.sizes.clear()
        steps = list(start(prompt, 60))
        assert [token for step in steps for token in step] == reply_slowly(prompt, 60)
        assert len(steps) == len(library.sizes) and library.sizes[0] == len(prompt)
        if not num_lookup:
            assert library.sizes[1:] == [1] * 59
        elif num_lookup == 4:
            assert len(steps) < 60, "no draft was accepted"


@pytest.mark.parametrize("concurrency", [1, 2, 3, 9])
def test_many_replies_are_those_of_each_prompt_alone(
    worker: Any, library: FakeLlamaCpp, concurrency: int
) -> None:
    _, start = worker.load_many(
        model="m", max_length=30, threads=1, num_lookup=0, concurrency=concurrency
    )
    replies: list[list[int]] = [[] for _ in PROMPTS]
    for step in start(PROMPTS, 7):
        assert 1 <= len(step) <= concurrency
        for index, tokens in step.items():
            replies[index] += tokens
    assert replies == [reply_slowly(prompt, 7) for prompt in PROMPTS]
    with pytest.raises(ValueError, match="not implemented"):
        worker.load_many(model="m", max_length=30, threads=1, num_lookup=2, concurrency=2)


def test_steps_of_rows_begin_behind_their_past(worker: Any, library: FakeLlamaCpp) -> None:
    _, prepare = worker.load_rows("m", 1, (8, 40))
    assert library.sizes == [8, 40]
    for rows, past in ((3, 8), (1, 40), (5, 8), (4, 40)):
        assert len(prepare(rows, past, False)()) == rows, "each row gets its next token"
    for _ in range(2):
        assert len(prepare(30, 0, True)()) == 1
    assert library.sizes[2:] == [3, 1, 5, 4, 30, 30]


def test_a_file_is_converted_to_the_precision(worker: Any, library: FakeLlamaCpp) -> None:
    for precision, number in (("q4_0", 2), ("q4_1", 3), ("q8_0", 7), ("q4_k_m", 15)):
        assert worker.quantize("a.gguf", "b.gguf", precision) == 0
        assert library.quantized.pop() == (b"a.gguf", b"b.gguf", number)
