"""The contract of engines, as the decode loop relies on it, tried on every engine."""

from collections.abc import Iterator

import numpy as np
import pytest
from support.built_engines import BuiltEngines
from support.stand_ins.fake_cuda import FakeCuda
from support.stand_ins.fake_onnxruntime import FakeOnnxRuntime
from support.stand_ins.table_engine import TableEngine

from medusa_trt.export.comparison.logits import MAX_RELATIVE_ERROR
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.engines.base import Engine
from medusa_trt.runtime.engines.ort_cpu import OrtEngine
from medusa_trt.runtime.engines.ort_cuda import OrtCudaEngine
from medusa_trt.tree_configs import MedusaTree, chain_tree

TREE = MedusaTree.from_choices([(0,), (1,), (0, 0), (0, 1), (0, 0, 0)], name="six")
TOKENS = [60, 61, 62, 63, 64, 65]
ACCEPTED = [0, 1, 4]
TEXTS = ([5, 6, 7, 8, 9, 10, 11], [20, 21, 22])


def open_engine(name: str, request: pytest.FixtureRequest) -> tuple[Engine, str]:
    """Opens an engine with three slots; returns also the precision of its bundle."""
    if name == "table":
        table = TableEngine(
            capacity=100, batch_size=3, vocab_size=256, num_heads=2, top_k=3, skill=0.5, seed=0
        )
        return table, "fp32"
    if name == "tensorrt":
        engines: BuiltEngines = request.getfixturevalue("trt_engines")
        return engines.open_engine(batch_size=3), engines.bundle.manifest.target.precision
    fixture = "tiny_bundle" if name == "ort-cpu" else "cuda_bundle"
    bundle: Bundle = request.getfixturevalue(fixture)
    precision = bundle.manifest.target.precision
    if name == "ort-cpu":
        return OrtEngine(bundle, capacity=100, batch_size=3), precision
    cuda = FakeCuda()
    module = FakeOnnxRuntime(cuda)
    return OrtCudaEngine(bundle, capacity=100, batch_size=3, module=module, cuda=cuda), precision


class Checked:
    """An engine, and how far its logits may be from those of the same text in another slot."""

    def __init__(self, engine: Engine, precision: str) -> None:
        self.engine, self.limit = engine, MAX_RELATIVE_ERROR[precision]

    def read(self, text: list[int], slot: int, past_length: int = 0) -> np.ndarray:
        """Puts a text into a slot; returns the logits after its last token."""
        chain, last = chain_tree(len(text) - 1), len(text) - 1
        outputs = self.engine.verify(
            [text], chain, [past_length], rows=(last,), first_slot=slot, logits=True
        )
        assert outputs.logits is not None
        logits: np.ndarray = outputs.logits[0, 0].astype(np.float64)
        assert outputs.argmax[0, 0] == logits.argmax()
        return logits

    def compare(self, logits: np.ndarray, expected: np.ndarray) -> bool:
        error = (logits - logits.mean()) - (expected - expected.mean())
        return bool(np.sqrt((error**2).mean()) <= self.limit * expected.std())


@pytest.fixture(params=["ort-cpu", "ort-cuda", "tensorrt", "table"])
def checked(request: pytest.FixtureRequest) -> Iterator[Checked]:
    engine, precision = open_engine(request.param, request)
    yield Checked(engine, precision)
    engine.close()
    engine.close()


def test_committed_nodes_are_as_if_they_had_been_read_in_order(checked: Checked) -> None:
    past_length = len(TEXTS[0])
    expected = checked.read([*TEXTS[0], *(TOKENS[node] for node in ACCEPTED), 70], 1)
    checked.read(TEXTS[0], 0)
    outputs = checked.engine.verify([TOKENS], TREE, [past_length], logits=True)
    assert outputs.logits is not None and outputs.logits.shape[:2] == (1, TREE.num_nodes)
    checked.engine.cache.commit(0, past_length, ACCEPTED)
    assert checked.compare(checked.read([70], 0, past_length + len(ACCEPTED)), expected)
    forgotten = checked.read([*TEXTS[0], *TOKENS[: len(ACCEPTED)], 70], 2)
    assert not checked.compare(forgotten, expected)


def test_neighbouring_slots_of_a_step_do_not_see_each_other(checked: Checked) -> None:
    lengths = list(map(len, TEXTS))
    expected = [checked.read([*text, 70], 0) for text in TEXTS]
    for slot, text in enumerate(TEXTS, start=1):
        checked.read(text, slot)
    together = checked.engine.verify(
        [[70], [70]], chain_tree(0), lengths, first_slot=1, logits=True
    )
    assert together.logits is not None
    for row, logits in zip(together.logits[:, 0].astype(np.float64), expected, strict=True):
        assert checked.compare(row, logits)
    assert not checked.compare(expected[0], expected[1])


def test_slots_are_copied_and_exchanged(checked: Checked) -> None:
    first, second = TEXTS
    expected = [checked.read([*text, 70], 2) for text in TEXTS]
    checked.read(first, 0)
    checked.read([*second, 30, 31, 32, 33], 1)
    checked.engine.cache.exchange(0, 1, len(first))
    assert checked.compare(checked.read([70], 1, len(first)), expected[0])
    assert checked.compare(checked.read([70], 0, len(second)), expected[1])
    checked.engine.cache.move(1, 2, len(first))
    assert checked.compare(checked.read([70], 2, len(first)), expected[0])


def test_only_requested_rows_are_returned(checked: Checked) -> None:
    every = checked.engine.verify([TOKENS], TREE, [0])
    argmax = every.argmax.copy()
    expected = checked.engine.draft(every.hidden[:, 4].copy(), [TOKENS[4]]).ids.copy()
    some = checked.engine.verify([TOKENS], TREE, [0], rows=(1, 4))
    assert some.logits is None and np.array_equal(some.argmax[0], argmax[0, [1, 4]])
    drafts = checked.engine.draft(some.hidden[:, 1].copy(), [TOKENS[4]])
    assert np.array_equal(drafts.ids, expected)
