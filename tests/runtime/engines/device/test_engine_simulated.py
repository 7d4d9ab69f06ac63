"""The engine on a GPU, with stand-ins that run TensorRT's engines on host memory."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from support.built_engines import PROMPT, TREE, BuiltEngines
from support.reference.reductions import reductions_from_logits

from medusa_trt.errors import EngineError
from medusa_trt.export.graphs.integer_reduce import make_integer_reduce
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.engines.base import Reductions, StepTree, TokenIds, VerifyOutputs
from medusa_trt.runtime.engines.tensorrt import TrtEngine
from medusa_trt.runtime.options import AcceptanceName, GenerationOptions, SamplingOptions
from medusa_trt.runtime.session import MedusaSession
from medusa_trt.tree_configs import MedusaTree, chain_tree


class HostReducing(TrtEngine):
    """Reads all logits, and reduces them row by row."""

    def verify(self, *arguments: Any, **options: Any) -> VerifyOutputs:
        outputs = super().verify(*arguments, **(options | {"logits": True, "reductions": False}))
        self.all_logits = outputs.logits
        return outputs

    def reduce(
        self,
        input_ids: TokenIds,
        tree: StepTree,
        samplings: Sequence[SamplingOptions],
        uniforms: NDArray[np.float64],
    ) -> Reductions:
        assert self.all_logits is not None
        assert isinstance(tree, MedusaTree) and len({*samplings}) == 1
        return reductions_from_logits(self.all_logits, input_ids, tree, samplings[0], uniforms)


SAMPLED: list[tuple[AcceptanceName, SamplingOptions]] = [
    ("sample", SamplingOptions(temperature=0.8, seed=1)),
    ("sample", SamplingOptions(temperature=1.3, top_k=7, seed=2)),
    ("sample", SamplingOptions(temperature=1.0, top_p=0.8, min_p=0.01, seed=3)),
    ("typical", SamplingOptions(temperature=0.7)),
]


def sample_replies(engine: TrtEngine, bundle: Bundle, tree: MedusaTree) -> list[list[int]]:
    with MedusaSession(bundle, engine=engine) as session:
        return [
            session.generate(
                PROMPT,
                GenerationOptions(
                    max_new_tokens=20,
                    ignore_eos=True,
                    tree=tree,
                    acceptance=acceptance,
                    sampling=sampling,
                ),
            ).token_ids
            for acceptance, sampling in SAMPLED
        ]


@pytest.mark.parametrize("fixture", ["trt_engines", "jetson_engines"])
def test_reductions_on_the_device_give_the_tokens_of_full_logits(
    fixture: str, request: pytest.FixtureRequest
) -> None:
    engines: BuiltEngines = request.getfixturevalue(fixture)
    expected = sample_replies(engines.open_engine(engine_class=HostReducing), engines.bundle, TREE)
    engines.cuda.download_sizes.clear()
    engines.module.graphs_executed.clear()
    assert sample_replies(engines.open_engine(), engines.bundle, TREE) == expected
    assert engines.module.graphs_executed.count("reduce") > 20
    # Of a step's outputs the hidden states are the largest; a row of logits is larger still.
    model = engines.bundle.manifest.model
    assert max(engines.cuda.download_sizes) == TREE.num_nodes * model.hidden_size * 4
    drawn = [index for index, (rule, _) in enumerate(SAMPLED) if rule == "sample"]
    plain = sample_replies(engines.open_engine(), engines.bundle, chain_tree(0))
    assert [plain[index] for index in drawn] == [expected[index] for index in drawn]


def test_greedy_decoding_reduces_nothing(trt_engines: BuiltEngines) -> None:
    trt_engines.module.graphs_executed.clear()
    with MedusaSession(trt_engines.bundle, engine=trt_engines.open_engine()) as session:
        session.generate(PROMPT, GenerationOptions(max_new_tokens=8, ignore_eos=True, tree=TREE))
    assert set(trt_engines.module.graphs_executed) == {"verify", "heads"}


def test_a_nucleus_beyond_the_sorted_tokens_is_drawn_on_the_host(
    trt_bundle: Bundle, trt_engines: BuiltEngines, tmp_path: Path
) -> None:
    folder = shutil.copytree(trt_bundle.path, tmp_path / "bundle")
    opset = ir.load(folder / "reduce.onnx").graph.opset_imports[""]
    vocab_size = trt_bundle.manifest.model.vocab_size
    ir.save(make_integer_reduce(vocab_size, opset, num_sorted=4), folder / "reduce.onnx")
    engines = BuiltEngines(Bundle(folder, trt_bundle.manifest, trt_bundle.tree), tmp_path)
    expected = sample_replies(trt_engines.open_engine(), trt_bundle, TREE)
    engines.cuda.download_sizes.clear()
    assert sample_replies(engines.open_engine(), engines.bundle, TREE) == expected
    assert engines.cuda.download_sizes.count(4 * vocab_size) > 5
    assert not engines.cuda.memory


def test_steady_steps_run_as_graphs_and_wait_once(trt_engines: BuiltEngines) -> None:
    engine = trt_engines.open_engine()
    tokens = [[5, 6, 7, 8, 9, 10]]
    engine.verify(tokens, TREE, [0])
    before = trt_engines.cuda.num_launches
    engine.verify(tokens, chain_tree(5), [0])
    assert trt_engines.cuda.num_launches == before  # a first run of a shape is no graph yet
    for step in range(1, 4):
        waits, launches = trt_engines.cuda.num_waits, trt_engines.cuda.num_launches
        engine.verify(tokens, TREE, [6 * step])
        assert trt_engines.cuda.num_waits == waits + 1
        assert trt_engines.cuda.num_launches == launches + 1
    engine.cache.commit(0, 18, [0, 2])
    engine.cache.move(0, 0, 3)
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="the engine is closed"):
        engine.verify(tokens, TREE, [0])


def test_a_batch_of_ragged_sequences_equals_each_alone(trt_engines: BuiltEngines) -> None:
    rng = np.random.default_rng(0)
    lengths = [40, 3, 17]
    prompts = [rng.integers(0, 250, length) for length in lengths]
    tokens = rng.integers(0, 250, (3, TREE.num_nodes))
    engine = trt_engines.open_engine(batch_size=3)
    for slot, prompt in enumerate(prompts):
        engine.verify(prompt[None], chain_tree(len(prompt) - 1), [0], first_slot=slot, rows=(0,))
    together = engine.verify(tokens, TREE, lengths, logits=True).logits
    assert together is not None
    together = together.copy()
    engine.cache.move(2, 0, 17)
    moved = engine.verify(tokens[2:], TREE, [17], logits=True).logits
    assert moved is not None
    assert np.abs(moved[0] - together[2]).max() < 0.1
    alone = trt_engines.open_engine()
    for slot, prompt in enumerate(prompts):
        alone.verify(prompt[None], chain_tree(len(prompt) - 1), [0], rows=(0,))
        logits = alone.verify(tokens[slot : slot + 1], TREE, [len(prompt)], logits=True).logits
        assert logits is not None
        assert np.abs(logits[0] - together[slot]).max() < 0.1
    alone.close()
    engine.close()


def test_many_trees_do_not_keep_memory(trt_engines: BuiltEngines) -> None:
    engine = trt_engines.open_engine()
    before = None
    for size in range(2, 40):
        engine.verify([list(range(size))], chain_tree(size - 1), [0])
        if size == 20:
            before = len(trt_engines.cuda.memory)
    assert before == len(trt_engines.cuda.memory)
    engine.close()
    assert not trt_engines.cuda.memory


@pytest.mark.parametrize("room_bytes", [0, 5000])
def test_a_full_memory_leaves_nothing_behind(trt_engines: BuiltEngines, room_bytes: int) -> None:
    trt_engines.cuda.room_bytes = room_bytes
    try:
        with pytest.raises(EngineError, match=r"cudaErrorMemoryAllocation; .* lower max_length"):
            trt_engines.open_engine()
    finally:
        trt_engines.cuda.room_bytes = float("inf")
    assert not trt_engines.cuda.memory and not trt_engines.cuda.streams


def test_a_step_that_finds_no_memory_can_be_tried_again(trt_engines: BuiltEngines) -> None:
    engine = trt_engines.open_engine()
    engine.verify([[5, 6, 7, 8, 9, 10]], TREE, [0])
    held = set(trt_engines.cuda.memory)
    trt_engines.cuda.room_bytes = sum(map(len, trt_engines.cuda.memory.values())) + 100
    try:
        with pytest.raises(EngineError, match="cudaErrorMemoryAllocation"):
            engine.verify([[1] * 20], chain_tree(19), [0])
    finally:
        trt_engines.cuda.room_bytes = float("inf")
    assert trt_engines.cuda.memory.keys() == held
    engine.verify([[1] * 20], chain_tree(19), [0])
    engine.close()
