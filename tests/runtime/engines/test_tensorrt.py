"""The TensorRT engine against a stand-in that executes the graphs on host memory."""

import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from support.reference.reductions import reductions_from_logits
from support.stand_ins.fake_cuda import FakeCuda
from support.stand_ins.fake_tensorrt import FakeTensorRT

from medusa_trt.errors import BuildError, EngineError
from medusa_trt.export.graphs.integer_reduce import make_integer_reduce
from medusa_trt.export.tensorrt.build import build_engines
from medusa_trt.export.tensorrt.options import BuildOptions
from medusa_trt.export.tensorrt.products import PRODUCTS, ProductSpec
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.engines.base import Reductions, TokenIds, VerifyOutputs
from medusa_trt.runtime.engines.engine_record import (
    RECORD_FILE,
    EngineRecord,
    Machine,
    Product,
    find_mismatches,
    record_from_folder,
)
from medusa_trt.runtime.engines.ort_cpu import OrtEngine
from medusa_trt.runtime.engines.tensorrt import TrtEngine
from medusa_trt.runtime.options import AcceptanceName, GenerationOptions, SamplingOptions
from medusa_trt.runtime.session import MedusaSession
from medusa_trt.tree_configs import MedusaTree, chain_tree

PROMPT = "the quick brown fox jumps over the lazy dog. the quick brown "
TREE = MedusaTree.from_choices([(0,), (1,), (0, 0), (0, 1), (0, 0, 0)], name="six")


class Built:
    """Engines of a bundle, built and run by the stand-in."""

    def __init__(
        self, bundle: Bundle, folder: Path, *, product: Product = "tensorrt", **options: int | bool
    ) -> None:
        self.bundle, self.cuda, self.product = bundle, FakeCuda(), product
        self.module = FakeTensorRT(self.cuda)
        if product == "tensorrt-rtx":
            self.module.of_rtx()
            options["target"] = product  # type: ignore[assignment]
        self.told: list[str] = []
        self.folder = folder / "engines"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ProductSpec, "load", lambda _: self.module)
            patch.setattr("medusa_trt.export.tensorrt.build.read_capability", lambda _: "8.6")
            build_engines(
                bundle,
                BuildOptions(output=self.folder, **options),  # type: ignore[arg-type]
                self.told.append,
            )

    def engine(self, of: type[TrtEngine] = TrtEngine, **arguments: object) -> TrtEngine:
        values = {
            "product": self.product,
            "module": self.module,
            "cuda": self.cuda,
            "folder": self.folder,
            **arguments,
        }
        return of(self.bundle, **values)  # type: ignore[arg-type]

    def change(self, **changes: object) -> None:
        record = msgspec.structs.replace(record_from_folder(self.folder), **changes)
        (self.folder / RECORD_FILE).write_bytes(msgspec.json.encode(record))


@pytest.fixture(scope="module")
def built(trt_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Built:
    return Built(trt_bundle, tmp_path_factory.mktemp("trt"), max_batch_size=3)


@pytest.fixture(scope="module")
def jetson(jetson_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Built:
    return Built(jetson_bundle, tmp_path_factory.mktemp("jetson"))


def replies(session: MedusaSession, tree: MedusaTree) -> list[list[int]]:
    options = GenerationOptions(max_new_tokens=24, ignore_eos=True, tree=tree)
    sampled = GenerationOptions(
        max_new_tokens=12,
        ignore_eos=True,
        tree=tree,
        sampling=SamplingOptions(temperature=0.8, top_p=0.9, seed=4),
    )
    return [session.generate(PROMPT, each).token_ids for each in (options, sampled)]


class HostReducing(TrtEngine):
    """Reads all logits, and reduces them row by row."""

    def verify(self, *arguments: Any, **options: Any) -> VerifyOutputs:
        outputs = super().verify(*arguments, **(options | {"logits": True, "reductions": False}))
        self.all_logits = outputs.logits
        return outputs

    def reduce(
        self,
        input_ids: TokenIds,
        tree: MedusaTree,
        sampling: SamplingOptions,
        uniforms: NDArray[np.float64],
    ) -> Reductions:
        assert self.all_logits is not None
        return reductions_from_logits(self.all_logits, input_ids, tree, sampling, uniforms)


SAMPLED: list[tuple[AcceptanceName, SamplingOptions]] = [
    ("sample", SamplingOptions(temperature=0.8, seed=1)),
    ("sample", SamplingOptions(temperature=1.3, top_k=7, seed=2)),
    ("sample", SamplingOptions(temperature=1.0, top_p=0.8, min_p=0.01, seed=3)),
    ("typical", SamplingOptions(temperature=0.7)),
]


def sampled_replies(engine: TrtEngine, bundle: Bundle, tree: MedusaTree) -> list[list[int]]:
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


@pytest.mark.parametrize("which", ["built", "jetson"])
def test_reductions_on_the_device_give_the_tokens_of_full_logits(
    which: str, request: pytest.FixtureRequest
) -> None:
    own: Built = request.getfixturevalue(which)
    expected = sampled_replies(own.engine(of=HostReducing), own.bundle, TREE)
    own.cuda.download_sizes.clear()
    own.module.graphs_executed.clear()
    assert sampled_replies(own.engine(), own.bundle, TREE) == expected
    assert own.module.graphs_executed.count("reduce") > 20
    # Of a step's outputs the hidden states are the largest; a row of logits is larger still.
    model = own.bundle.manifest.model
    assert max(own.cuda.download_sizes) == TREE.num_nodes * model.hidden_size * 4
    drawn = [index for index, (rule, _) in enumerate(SAMPLED) if rule == "sample"]
    plain = sampled_replies(own.engine(), own.bundle, chain_tree(0))
    assert [plain[index] for index in drawn] == [expected[index] for index in drawn]


def test_greedy_decoding_reduces_nothing(built: Built) -> None:
    built.module.graphs_executed.clear()
    with MedusaSession(built.bundle, engine=built.engine()) as session:
        session.generate(PROMPT, GenerationOptions(max_new_tokens=8, ignore_eos=True, tree=TREE))
    assert set(built.module.graphs_executed) == {"verify", "heads"}


def test_a_nucleus_beyond_the_sorted_tokens_is_drawn_on_the_host(
    trt_bundle: Bundle, built: Built, tmp_path: Path
) -> None:
    folder = shutil.copytree(trt_bundle.path, tmp_path / "bundle")
    opset = ir.load(folder / "reduce.onnx").graph.opset_imports[""]
    vocab_size = trt_bundle.manifest.model.vocab_size
    ir.save(make_integer_reduce(vocab_size, opset, num_sorted=4), folder / "reduce.onnx")
    own = Built(Bundle(folder, trt_bundle.manifest, trt_bundle.tree), tmp_path)
    expected = sampled_replies(built.engine(), trt_bundle, TREE)
    own.cuda.download_sizes.clear()
    assert sampled_replies(own.engine(), own.bundle, TREE) == expected
    assert own.cuda.download_sizes.count(4 * vocab_size) > 5
    assert not own.cuda.memory


@pytest.mark.parametrize("which", ["built", "jetson"])
def test_replies_equal_those_of_onnx_runtime(which: str, request: pytest.FixtureRequest) -> None:
    own: Built = request.getfixturevalue(which)
    with MedusaSession(own.bundle, engine=own.engine()) as session:
        found = replies(session, TREE)
        plain = replies(session, chain_tree(0))
    engine = OrtEngine(
        own.bundle, capacity=own.bundle.manifest.model.max_length + 64, num_threads=1
    )
    with MedusaSession(own.bundle, engine=engine) as session:
        expected = replies(session, TREE)
    assert found == expected
    assert plain == expected
    assert not own.cuda.memory, "memory was not freed"


def test_a_merged_tree_is_no_input_and_other_trees_run_beside_it(
    trt_bundle: Bundle, tmp_path: Path
) -> None:
    own = Built(trt_bundle, tmp_path, merge_tree=True)
    record = record_from_folder(own.folder)
    assert record.engines.keys() == {"verify", "prefill", "heads", "reduce"}
    assert record.medusa_choices == [[0], [0, 0], [0, 0, 0]]
    merged = {tensor.name: tensor.shape for tensor in record.engines["verify"].inputs}
    assert not merged.keys() & {"tree_mask", "position_offsets"}
    assert merged["input_ids"] == ["batch", 4]
    rng = np.random.default_rng(1)
    prompt, tokens = rng.integers(0, 250, (1, 30)), rng.integers(0, 250, (1, 4))
    engine = own.engine()
    engine.verify(prompt, chain_tree(29), [0], rows=(0,))
    logits = []
    # A tree of the same form, and one that only begins like it.
    for tree in (trt_bundle.tree, MedusaTree.from_choices([(0,), (0, 0), (1,)])):
        own.module.executed.clear()
        outputs = engine.verify(tokens, tree, [30], logits=True).logits
        assert outputs is not None
        logits.append(outputs[0].copy())
        assert own.module.executed == ["profile 0"]
    engine.close()
    other = OrtEngine(trt_bundle, capacity=384, num_threads=1)
    other.verify(prompt, chain_tree(29), [0], rows=(0,))
    for found, tree in zip(
        logits, (trt_bundle.tree, MedusaTree.from_choices([(0,), (0, 0), (1,)])), strict=True
    ):
        expected = other.verify(tokens, tree, [30], logits=True).logits
        assert expected is not None and np.array_equal(found, expected[0])
    with MedusaSession(trt_bundle, engine=own.engine()) as session:
        with_tree, plain = (replies(session, each) for each in (trt_bundle.tree, chain_tree(0)))
    assert with_tree == plain


def test_steady_steps_run_as_graphs_and_wait_once(built: Built) -> None:
    engine = built.engine()
    tokens = [[5, 6, 7, 8, 9, 10]]
    engine.verify(tokens, TREE, [0])
    before = built.cuda.num_launches
    engine.verify(tokens, chain_tree(5), [0])
    assert built.cuda.num_launches == before  # a first run of a shape is no graph yet
    for step in range(1, 4):
        waits, launches = built.cuda.num_waits, built.cuda.num_launches
        engine.verify(tokens, TREE, [6 * step])
        assert built.cuda.num_waits == waits + 1
        assert built.cuda.num_launches == launches + 1
    engine.commit(0, 18, [0, 2])
    engine.move(0, 0, 3)
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="the engine is closed"):
        engine.verify(tokens, TREE, [0])


def test_a_batch_of_ragged_sequences_equals_each_alone(built: Built) -> None:
    rng = np.random.default_rng(0)
    lengths = [40, 3, 17]
    prompts = [rng.integers(0, 250, length) for length in lengths]
    tokens = rng.integers(0, 250, (3, TREE.num_nodes))
    engine = built.engine(batch_size=3)
    for slot, prompt in enumerate(prompts):
        engine.verify(prompt[None], chain_tree(len(prompt) - 1), [0], first_slot=slot, rows=(0,))
    together = engine.verify(tokens, TREE, lengths, logits=True).logits
    assert together is not None
    together = together.copy()
    engine.move(2, 0, 17)
    moved = engine.verify(tokens[2:], TREE, [17], logits=True).logits
    assert moved is not None
    assert np.abs(moved[0] - together[2]).max() < 0.1
    alone = built.engine()
    for slot, prompt in enumerate(prompts):
        alone.verify(prompt[None], chain_tree(len(prompt) - 1), [0], rows=(0,))
        logits = alone.verify(tokens[slot : slot + 1], TREE, [len(prompt)], logits=True).logits
        assert logits is not None
        assert np.abs(logits[0] - together[slot]).max() < 0.1
    alone.close()
    engine.close()


def test_many_trees_do_not_keep_memory(built: Built) -> None:
    engine = built.engine()
    before = None
    for size in range(2, 40):
        engine.verify([list(range(size))], chain_tree(size - 1), [0])
        if size == 20:
            before = len(built.cuda.memory)
    assert before == len(built.cuda.memory)
    engine.close()
    assert not built.cuda.memory


def test_limits_are_named(built: Built, jetson: Built) -> None:
    engine = built.engine()
    with pytest.raises(EngineError, match="do not fit the KV cache of 384 rows"):
        engine.verify([[1]], chain_tree(0), [384])
    engine.close()
    with pytest.raises(EngineError, match="batch_size is 4: these engines take 1 to 3; build"):
        built.engine(batch_size=4)
    with pytest.raises(EngineError, match="batch_size is 2: these engines take 1 to 1"):
        jetson.engine(batch_size=2)
    with pytest.raises(EngineError, match="384 rows, 1000 are needed"):
        built.engine(capacity=1000)


def test_a_machine_without_a_gpu_is_named(built: Built) -> None:
    with pytest.raises(EngineError, match="CUDA finds no GPU"):
        built.engine(cuda=FakeCuda(num_devices=0))


@pytest.mark.parametrize(
    ("machine", "found"),
    [
        (Machine("tensorrt", "11.0.0", "8.6"), []),
        (Machine("tensorrt-rtx", "11.0.0", "8.6"), ["for tensorrt, not for tensorrt-rtx"]),
        (Machine("tensorrt", "11.1.0", "8.6"), ["built with version 11.0.0, installed is 11.1.0"]),
        (Machine("tensorrt", "11.0.0", "9.0"), ["capability 8.6, this GPU has 9.0"]),
        (Machine("tensorrt", "10.9", "7.5"), ["version 11.0.0", "capability 8.6"]),
    ],
)
def test_what_does_not_fit_is_named(built: Built, machine: Machine, found: list[str]) -> None:
    reasons = find_mismatches(record_from_folder(built.folder), machine)
    assert len(reasons) == len(found)
    assert all(part in reason for part, reason in zip(found, reasons, strict=True))


def test_compatible_engines_load_on_later_versions_and_gpus(built: Built) -> None:
    own = record_from_folder(built.folder)
    wide: EngineRecord = msgspec.structs.replace(own, any_version=True, any_hardware=True)
    assert not find_mismatches(wide, Machine("tensorrt", "11.2.1", "12.0"))
    assert not find_mismatches(wide, Machine("tensorrt", "11.2.1", "8.0")), "built on 8.6 for all"
    assert len(find_mismatches(wide, Machine("tensorrt", "10.9.0", "7.5"))) == 2


def test_loading_says_what_differs(trt_bundle: Bundle, tmp_path: Path) -> None:
    own = Built(trt_bundle, tmp_path)
    own.change(version="10.16.1", compute_capabilities=["8.9"])
    with pytest.raises(EngineError, match=r"version 10.16.1.*11.0.0; built for.* 8.9.* 8.6"):
        own.engine()
    own.change(version="11.0.0", compute_capabilities=["8.6"])
    weights = record_from_folder(own.folder).weights_sha256
    own.change(weights_sha256="0" * 64)
    with pytest.raises(EngineError, match="built from other weights than the bundle's: build"):
        own.engine()
    own.change(weights_sha256=weights)
    engines = record_from_folder(own.folder).engines
    own.change(engines={name: each for name, each in engines.items() if name != "reduce"})
    with pytest.raises(EngineError, match="has no reduce engine: build the engines again"):
        own.engine()
    own.change(engines=engines)
    (own.folder / "heads.engine").write_bytes(b"short")
    with pytest.raises(EngineError, match=r"heads.engine is missing or truncated"):
        own.engine()
    without = shutil.copytree(trt_bundle.path, tmp_path / "b", ignore=lambda *_: ["engines"])
    own.bundle = Bundle.open(without)
    with pytest.raises(EngineError, match="has no engines: make them with medusa-trt build"):
        own.engine(folder=None)


def test_the_builder_gets_the_options(trt_bundle: Bundle, tmp_path: Path) -> None:
    own = Built(
        trt_bundle,
        tmp_path,
        workspace_mib=64,
        optimization_level=2,
        weight_streaming=True,
        version_compatible=True,
    )
    config = own.module.configs[0]
    assert config.limit == 64 << 20 and config.builder_optimization_level == 2
    assert config.flags == ["version", "stream"]
    assert own.module.configs[2].flags == ["version"], "the reduce engine has no weights"
    assert (tmp_path / "timing.cache").read_bytes() == b"ttt"  # all engines added to it
    small = Built(trt_bundle, tmp_path, overwrite=True, max_tree_nodes=8, prefill_chunk=16)
    engine = small.engine()
    engine.verify([[1] * 16], chain_tree(15), [0])
    assert small.module.executed == ["profile 1"]
    with pytest.raises(EngineError, match="a step of 20 nodes: the engines take 16 at most"):
        engine.verify([[1] * 20], chain_tree(19), [0])
    engine.close()
    # Nor does a session ask for more: a prompt comes in pieces of 16.
    options = GenerationOptions(max_new_tokens=6, ignore_eos=True)
    with MedusaSession(trt_bundle, engine=small.engine()) as session:
        found = session.generate(PROMPT, options).token_ids
    with MedusaSession(trt_bundle, engine=own.engine(), max_length=256) as session:
        assert session.generate(PROMPT, options).token_ids == found
    assert (tmp_path / "timing.cache").read_bytes() == b"tttttt"
    assert record_from_folder(own.folder).any_version is False


def test_every_product_has_a_row() -> None:
    assert {"tensorrt", "tensorrt-rtx"} == PRODUCTS.keys()


def test_a_session_chooses_the_backend(trt_bundle: Bundle) -> None:
    with MedusaSession(trt_bundle, backend="ort-cpu", max_length=64, num_threads=1) as session:
        options = GenerationOptions(max_new_tokens=4, ignore_eos=True)
        assert len(session.generate("hello", options).token_ids) == 4
    with pytest.raises(EngineError, match="unknown backend 'cpu': choose from ort-cpu, ort-cuda"):
        MedusaSession(trt_bundle, backend="cpu")
    with pytest.raises(EngineError, match=r"not installed|CUDA|no engines"):
        MedusaSession(trt_bundle)


def test_all_contexts_compute_in_one_piece_of_memory(built: Built) -> None:
    engine = built.engine()
    for size in range(2, 12):
        engine.verify([[1] * size], chain_tree(size - 1), [0])
    sizes = [len(buffer) for buffer in built.cuda.memory.values()]
    assert sizes.count(built.module.engines[-1].device_memory_size_v2) == 1
    engine.close()
    assert not built.cuda.memory and not built.cuda.streams


def test_steps_of_tensorrt_rtx_are_graphs_of_final_kernels(
    trt_bundle: Bundle, tmp_path: Path
) -> None:
    own = Built(trt_bundle, tmp_path, product="tensorrt-rtx")
    assert all("user" in config.flags for config in own.module.configs)
    engine = own.engine()
    for _ in range(3):
        engine.verify([[5, 6, 7, 8, 9, 10]], TREE, [0])
    assert own.cuda.num_launches == 2
    engine.close()


def test_steps_with_streamed_weights_are_no_graphs(trt_bundle: Bundle, tmp_path: Path) -> None:
    """TensorRT-RTX: REQUIRE_USER_ALLOCATION is not compatible with WEIGHT_STREAMING."""
    own = Built(trt_bundle, tmp_path, product="tensorrt-rtx", weight_streaming=True)
    assert not any("user" in config.flags for config in own.module.configs)
    engine = own.engine()
    for _ in range(3):
        engine.verify([[5, 6, 7, 8, 9, 10]], TREE, [0])
    assert own.cuda.num_launches == 0
    engine.close()


def test_what_breaks_a_recording_is_reported(trt_bundle: Bundle, tmp_path: Path) -> None:
    own = Built(trt_bundle, tmp_path)
    engine = own.engine()
    engine.verify([[5, 6, 7, 8, 9, 10]], TREE, [0])
    own.module.fails_in_capture = True
    with pytest.raises(EngineError, match="TensorRT failed in the verify engine"):
        engine.verify([[5, 6, 7, 8, 9, 10]], TREE, [0])
    assert own.cuda.captured is None, "the stream is free again"
    engine.close()


@pytest.mark.parametrize("room_bytes", [0, 5000])
def test_a_full_memory_leaves_nothing_behind(built: Built, room_bytes: int) -> None:
    built.cuda.room_bytes = room_bytes
    try:
        with pytest.raises(EngineError, match=r"cudaErrorMemoryAllocation; .* lower max_length"):
            built.engine()
    finally:
        built.cuda.room_bytes = float("inf")
    assert not built.cuda.memory and not built.cuda.streams


def test_a_step_that_finds_no_memory_can_be_tried_again(built: Built) -> None:
    engine = built.engine()
    engine.verify([[5, 6, 7, 8, 9, 10]], TREE, [0])
    held = set(built.cuda.memory)
    built.cuda.room_bytes = sum(map(len, built.cuda.memory.values())) + 100
    try:
        with pytest.raises(EngineError, match="cudaErrorMemoryAllocation"):
            engine.verify([[1] * 20], chain_tree(19), [0])
    finally:
        built.cuda.room_bytes = float("inf")
    assert built.cuda.memory.keys() == held
    engine.verify([[1] * 20], chain_tree(19), [0])
    engine.close()


@pytest.mark.parametrize(("free_bytes", "left"), [(10**9, True), (1000, False)])
def test_streamed_weights_leave_room_for_the_cache(
    trt_bundle: Bundle, tmp_path: Path, free_bytes: int, left: bool
) -> None:
    own = Built(trt_bundle, tmp_path, weight_streaming=True, max_batch_size=2)
    own.module.free_bytes = free_bytes
    engine = own.engine(batch_size=2)
    model = trt_bundle.manifest.model
    slab = (model.num_layers, 2, 2, model.num_kv_heads, engine.capacity, model.head_dim)
    cache_bytes = 2 * int(np.prod(slab))
    budgets = {each.graph: each.weight_streaming_budget_v2 for each in own.module.engines}
    expected = free_bytes - cache_bytes if left else 0
    assert budgets == {"verify": expected, "heads": expected, "reduce": None}
    engine.close()


@pytest.mark.parametrize("content", [b"other version", b"damaged"])
def test_a_timing_cache_that_does_not_fit_is_written_anew(
    trt_bundle: Bundle, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "timing.cache").write_bytes(content)
    own = Built(trt_bundle, tmp_path)
    assert (tmp_path / "timing.cache").read_bytes() == b"ttt"
    assert sum("timing cache is damaged or of another GPU" in text for text in own.told) == 1


def test_mistakes_in_paths_end_a_build_before_it_begins(trt_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"--timing-cache .*: give a file in a folder that is"):
        Built(trt_bundle, tmp_path, timing_cache=tmp_path / "no" / "file")  # type: ignore[arg-type]
    with pytest.raises(BuildError, match=r"cannot write .*/no/engines: .*/no is not a folder"):
        Built(trt_bundle, tmp_path / "no")
    (tmp_path / "engines").mkdir()
    (tmp_path / "engines" / "thesis.txt").write_text("all of it")
    with pytest.raises(BuildError, match="holds no engines, so it is not overwritten"):
        Built(trt_bundle, tmp_path, overwrite=True)
    assert (tmp_path / "engines" / "thesis.txt").is_file()


@pytest.mark.parametrize("max_length", [97, 128, 255])
def test_slots_of_the_cache_are_aligned(
    trt_bundle: Bundle, tmp_path: Path, max_length: int
) -> None:
    own = Built(trt_bundle, tmp_path, max_length=max_length, max_tree_nodes=5)
    model = trt_bundle.manifest.model
    record = record_from_folder(own.folder)
    slot_bytes = model.num_kv_heads * record.capacity * model.head_dim * 2
    assert slot_bytes % 256 == 0
    assert 0 <= record.capacity - max_length - 5 < 16


def test_an_interrupt_while_building_is_one(
    trt_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("medusa_trt.export.tensorrt.build._Throttle.__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Built(trt_bundle, tmp_path)
    assert not list(tmp_path.iterdir())
