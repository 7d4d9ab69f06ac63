"""TensorRT's engines, with stand-ins that run them on host memory."""

from pathlib import Path

import numpy as np
import pytest
from support.built_engines import PROMPT, TREE, BuiltEngines
from support.stand_ins.fake_cuda import FakeCuda

from medusa_trt.errors import EngineError
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.engines.engine_record import record_from_folder
from medusa_trt.runtime.engines.ort_cpu import OrtEngine
from medusa_trt.runtime.options import GenerationOptions, SamplingOptions
from medusa_trt.runtime.session import MedusaSession
from medusa_trt.tree_configs import MedusaTree, chain_tree


def generate_replies(session: MedusaSession, tree: MedusaTree) -> list[list[int]]:
    greedy = GenerationOptions(max_new_tokens=24, ignore_eos=True, tree=tree)
    sampled = GenerationOptions(
        max_new_tokens=12,
        ignore_eos=True,
        tree=tree,
        sampling=SamplingOptions(temperature=0.8, top_p=0.9, seed=4),
    )
    return [session.generate(PROMPT, options).token_ids for options in (greedy, sampled)]


@pytest.mark.parametrize("fixture", ["trt_engines", "jetson_engines"])
def test_replies_equal_those_of_onnx_runtime(fixture: str, request: pytest.FixtureRequest) -> None:
    engines: BuiltEngines = request.getfixturevalue(fixture)
    with MedusaSession(engines.bundle, engine=engines.open_engine()) as session:
        actual = generate_replies(session, TREE)
        plain = generate_replies(session, chain_tree(0))
    engine = OrtEngine(
        engines.bundle, capacity=engines.bundle.manifest.model.max_length + 64, num_threads=1
    )
    with MedusaSession(engines.bundle, engine=engine) as session:
        expected = generate_replies(session, TREE)
    assert actual == expected
    assert plain == expected
    assert not engines.cuda.memory, "memory was not freed"


def test_a_merged_tree_is_no_input_and_other_trees_run_beside_it(
    trt_bundle: Bundle, tmp_path: Path
) -> None:
    engines = BuiltEngines(trt_bundle, tmp_path, merge_tree=True)
    record = record_from_folder(engines.folder)
    assert record.engines.keys() == {"verify", "prefill", "heads", "reduce"}
    assert record.medusa_choices == [[0], [0, 0], [0, 0, 0]]
    merged = {tensor.name: tensor.shape for tensor in record.engines["verify"].inputs}
    assert not merged.keys() & {"tree_mask", "position_offsets"}
    assert merged["input_ids"] == ["batch", 4]
    rng = np.random.default_rng(1)
    prompt, tokens = rng.integers(0, 250, (1, 30)), rng.integers(0, 250, (1, 4))
    engine = engines.open_engine()
    engine.verify(prompt, chain_tree(29), [0], rows=(0,))
    logits = []
    # The second tree has as many nodes as the merged one, but another form.
    trees = (trt_bundle.tree, MedusaTree.from_choices([(0,), (0, 0), (1,)]))
    for tree in trees:
        engines.module.executed.clear()
        outputs = engine.verify(tokens, tree, [30], logits=True).logits
        assert outputs is not None
        logits.append(outputs[0].copy())
        assert engines.module.executed == ["profile 0"]
    engine.close()
    other = OrtEngine(trt_bundle, capacity=384, num_threads=1)
    other.verify(prompt, chain_tree(29), [0], rows=(0,))
    for actual, tree in zip(logits, trees, strict=True):
        expected = other.verify(tokens, tree, [30], logits=True).logits
        assert expected is not None and np.array_equal(actual, expected[0])
    with MedusaSession(trt_bundle, engine=engines.open_engine()) as session:
        with_tree, plain = (
            generate_replies(session, options) for options in (trt_bundle.tree, chain_tree(0))
        )
    assert with_tree == plain


def test_limits_are_named(trt_engines: BuiltEngines, jetson_engines: BuiltEngines) -> None:
    engine = trt_engines.open_engine()
    with pytest.raises(EngineError, match="do not fit the KV cache of 384 rows"):
        engine.verify([[1]], chain_tree(0), [384])
    engine.close()
    with pytest.raises(EngineError, match="batch_size is 4: these engines take 1 to 3; build"):
        trt_engines.open_engine(batch_size=4)
    with pytest.raises(EngineError, match="batch_size is 2: these engines take 1 to 1"):
        jetson_engines.open_engine(batch_size=2)
    with pytest.raises(EngineError, match="384 rows, 1000 are needed"):
        trt_engines.open_engine(capacity=1000)


def test_a_machine_without_a_gpu_is_named(trt_engines: BuiltEngines) -> None:
    with pytest.raises(EngineError, match="CUDA finds no GPU"):
        trt_engines.open_engine(cuda=FakeCuda(num_devices=0))


def test_all_contexts_compute_in_one_piece_of_memory(trt_engines: BuiltEngines) -> None:
    engine = trt_engines.open_engine()
    for size in range(2, 12):
        engine.verify([[1] * size], chain_tree(size - 1), [0])
    sizes = [len(buffer) for buffer in trt_engines.cuda.memory.values()]
    assert sizes.count(trt_engines.module.engines[-1].device_memory_size_v2) == 1
    engine.close()
    assert not trt_engines.cuda.memory and not trt_engines.cuda.streams


def test_steps_of_tensorrt_rtx_are_graphs_of_final_kernels(
    trt_bundle: Bundle, tmp_path: Path
) -> None:
    engines = BuiltEngines(trt_bundle, tmp_path, product="tensorrt-rtx")
    assert all("user" in config.flags for config in engines.module.configs)
    engine = engines.open_engine()
    for _ in range(3):
        engine.verify([[5, 6, 7, 8, 9, 10]], TREE, [0])
    assert engines.cuda.num_launches == 2
    engine.close()


def test_steps_with_streamed_weights_are_no_graphs(trt_bundle: Bundle, tmp_path: Path) -> None:
    """TensorRT-RTX: REQUIRE_USER_ALLOCATION is not compatible with WEIGHT_STREAMING."""
    engines = BuiltEngines(trt_bundle, tmp_path, product="tensorrt-rtx", weight_streaming=True)
    assert not any("user" in config.flags for config in engines.module.configs)
    engine = engines.open_engine()
    for _ in range(3):
        engine.verify([[5, 6, 7, 8, 9, 10]], TREE, [0])
    assert engines.cuda.num_launches == 0
    engine.close()


def test_what_breaks_a_recording_is_reported(trt_bundle: Bundle, tmp_path: Path) -> None:
    engines = BuiltEngines(trt_bundle, tmp_path)
    engine = engines.open_engine()
    engine.verify([[5, 6, 7, 8, 9, 10]], TREE, [0])
    engines.module.fails_in_capture = True
    with pytest.raises(EngineError, match="TensorRT failed in the verify engine"):
        engine.verify([[5, 6, 7, 8, 9, 10]], TREE, [0])
    assert engines.cuda.captured is None, "the stream is free again"
    engine.close()
