"""The engine on ONNX Runtime's CUDA provider, against a stand-in that runs on host memory."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from support.stand_ins.fake_cuda import FakeCuda
from support.stand_ins.fake_onnxruntime import FakeOnnxRuntime
from support.tiny_models import VOCAB_SIZE, llama_config, random_model

from medusa_trt.errors import EngineError
from medusa_trt.export.comparison.check import widen_bundle
from medusa_trt.export.comparison.logits import compare_on_text, compare_on_tree, random_tree
from medusa_trt.export.pipeline import ExportOptions, export_bundle
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.engines.ort_cpu import OrtEngine
from medusa_trt.runtime.engines.ort_cuda import OrtCudaEngine
from medusa_trt.runtime.options import GenerationOptions, SamplingOptions
from medusa_trt.runtime.session import MedusaSession
from medusa_trt.tree_configs import MedusaTree, chain_tree

PROMPT = "the quick brown fox jumps over the lazy dog. the quick brown "
TREE = MedusaTree.from_choices([(0,), (1,), (0, 0), (0, 1), (0, 0, 0)], name="six")
MAX_TWIN_ERROR = 2e-3
"""Relative, of a graph without its rounding: what is left is that of the rotary tables."""


class Device:
    """A GPU, as far as this machine has one."""

    def __init__(self, **options: bool) -> None:
        self.cuda = FakeCuda()
        self.module = FakeOnnxRuntime(self.cuda, **options)

    def engine(self, bundle: Bundle, capacity: int = 384, batch_size: int = 1) -> OrtCudaEngine:
        return OrtCudaEngine(
            bundle, capacity=capacity, batch_size=batch_size, module=self.module, cuda=self.cuda
        )


def replies(session: MedusaSession, tree: MedusaTree) -> list[list[int]]:
    sampling = SamplingOptions(temperature=0.8, top_p=0.9, seed=4)
    options = [
        GenerationOptions(max_new_tokens=24, ignore_eos=True, tree=tree),
        GenerationOptions(max_new_tokens=12, ignore_eos=True, tree=tree, sampling=sampling),
    ]
    return [session.generate(PROMPT, each).token_ids for each in options]


def test_logits_equal_hugging_face(cuda_bundle: Bundle, tmp_path: Path) -> None:
    model = random_model(llama_config())
    for parameter in model.parameters():
        parameter.data = parameter.data.half().float()
    device = Device()
    engine = device.engine(widen_bundle(cuda_bundle, tmp_path / "wide"), 128, batch_size=2)
    ids = np.random.default_rng(3).integers(0, VOCAB_SIZE, 60).tolist()
    agreements = [
        compare_on_text(engine, model, ids, chunk=17),
        compare_on_tree(engine, model, [ids[:31], ids[:7]], random_tree(20, 4, seed=5)),
    ]
    assert all(agreement.relative_error <= MAX_TWIN_ERROR for agreement in agreements), agreements
    engine.close()
    assert not device.cuda.memory, "memory was not freed"


def test_replies_equal_those_of_the_cpu_engine(cuda_bundle: Bundle) -> None:
    device = Device()
    with MedusaSession(cuda_bundle, engine=device.engine(cuda_bundle)) as session:
        actual, plain = replies(session, TREE), replies(session, chain_tree(0))
    assert device.module.executed.count("reduce") > 12
    engine = OrtEngine(cuda_bundle, capacity=384, num_threads=1)
    with MedusaSession(cuda_bundle, engine=engine) as session:
        expected = replies(session, TREE)
    assert actual == expected
    assert plain == expected


def test_steady_steps_replay_a_graph_and_wait_once(cuda_bundle: Bundle) -> None:
    device = Device()
    engine = device.engine(cuda_bundle, capacity=290)
    assert engine.capacity == 296
    tokens = [[5, 6, 7, 8, 9, 10]]
    for step in range(4):
        waits, replays = device.cuda.num_waits, device.module.num_replays
        outputs = engine.verify(tokens, TREE, [6 * step])
        assert device.cuda.num_waits == waits + 1
        assert device.module.num_replays == replays + (step >= 2)
        assert engine.draft(outputs.hidden[:, 0], [0]).ids.shape == (1, 4, 10)
    # Beyond 256 rows another number of them is read: a graph of its own.
    engine.verify(tokens, TREE, [270])
    engine.verify(tokens, TREE, [270])
    assert len(device.module.recorded) == 2
    engine.close()
    with pytest.raises(EngineError, match="the engine is closed"):
        engine.verify(tokens, TREE, [0])


def test_trees_that_come_and_go_keep_neither_memory_nor_graphs(cuda_bundle: Bundle) -> None:
    device = Device()
    engine = device.engine(cuda_bundle)
    sizes = []
    for size in range(2, 80):
        tree = chain_tree(size - 1)
        for _ in range(2):
            engine.verify([list(range(size))], tree, [0])
        sizes.append(len(device.cuda.memory))
    assert sizes[20] == sizes[-1]
    assert len(device.module.recorded) == 64
    engine.close()


@pytest.mark.parametrize("precision", ["bf16", "int4"])
def test_other_precisions_keep_to_types_that_the_provider_has(
    precision: str, tiny_model: Path, tiny_heads: Path, tmp_path: Path
) -> None:
    bundle = export_bundle(
        ExportOptions(
            model=str(tiny_model),
            heads=tiny_heads,
            tree="chain-3",
            output=tmp_path / "bundle",
            max_length=128,
            target="ort-cuda",
            precision=precision,
        ),
        progress=lambda _: None,
    )
    cache = "bfloat16" if precision == "bf16" else "float16"
    assert bundle.manifest.target.cache_dtype == cache
    assert bundle.manifest.verified.keys() == {"text", "tree", "batch"}
    for graph in ("verify", "heads"):
        for node in ir.load(bundle.graph_path(graph)).graph:
            if node.op_type in ("ArgMax", "TopK"):
                source = node.inputs[0]
                assert source is not None and source.dtype != ir.DataType.BFLOAT16


def test_sizes_do_not_meet_tensors(cuda_bundle: Bundle) -> None:
    """The provider makes sizes on the host: what they are computed into must be sizes too."""
    graph = ir.load(cuda_bundle.graph_path("verify")).graph
    on_host = {node.outputs[0] for node in graph if node.op_type == "Shape"}
    takes_sizes = {"Reshape": 1, "Slice": 2, "Expand": 1}
    for node in graph:
        for index, value in enumerate(node.inputs):
            if value not in on_host:
                continue
            if node.op_type in ("Concat", "Gather", "Squeeze"):
                on_host.add(node.outputs[0])
            else:
                assert takes_sizes.get(node.op_type) == index, f"{node.op_type} copies a size"
    assert "SkipSimplifiedLayerNormalization" in {node.op_type for node in graph}


@pytest.mark.parametrize("graph", ["verify", "heads", "reduce"])
def test_nothing_needs_cudnn(graph: str, cuda_bundle: Bundle) -> None:
    """The provider has kernels of its own for these; `ReduceMin` and `ReduceMax` call cuDNN."""
    reductions = {
        node.op_type
        for node in ir.load(cuda_bundle.graph_path(graph)).graph
        if node.op_type.startswith("Reduce")
    }
    assert reductions <= {"ReduceSum"}


def test_what_is_missing_is_named(cuda_bundle: Bundle, trt_bundle: Bundle) -> None:
    with pytest.raises(EngineError, match="exported for tensorrt: export the model with --target"):
        Device().engine(trt_bundle)
    with pytest.raises(EngineError, match=r"cannot use CUDAExecutionProvider here.*\[ort-cuda\]"):
        Device(has_libraries=False).engine(cuda_bundle)
    with pytest.raises(EngineError, match="batch_size is 0"):
        Device().engine(cuda_bundle, batch_size=0)
    device = Device()
    device.cuda.room_bytes = 5000
    with pytest.raises(EngineError, match="cudaErrorMemoryAllocation; the memory is full: lower"):
        device.engine(cuda_bundle)
    assert not device.cuda.memory and not device.cuda.streams
    with pytest.raises(EngineError, match="onnxruntime has no CUDAExecutionProvider: pip"):
        MedusaSession(cuda_bundle)
