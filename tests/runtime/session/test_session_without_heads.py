"""Bundles without heads: plain decoding, and prompt lookup that changes no token."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from support.built_engines import BuiltEngines
from support.stand_ins.fake_cuda import FakeCuda
from support.stand_ins.fake_onnxruntime import FakeOnnxRuntime

from medusa_trt.errors import TreeError
from medusa_trt.export.pipeline import ExportOptions, export_bundle
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.engines.base import Engine
from medusa_trt.runtime.engines.ort_cpu import OrtEngine
from medusa_trt.runtime.engines.ort_cuda import OrtCudaEngine
from medusa_trt.runtime.processors.penalties import LogitBias
from medusa_trt.runtime.session import GenerationOptions, MedusaSession, SamplingOptions
from medusa_trt.runtime.tensors import GRAPH_FILES
from medusa_trt.tree_configs import chain_tree, load_tree

REPEATING = [5, 6, 7, 8] * 6
OPTIONS = GenerationOptions(max_new_tokens=40, ignore_eos=True, lookup_ngram=2)
PLAIN = load_tree("plain")


def cpu_engine(bundle: Bundle, _: Path) -> Engine:
    return OrtEngine(bundle, capacity=384, batch_size=2, num_threads=1)


def cuda_engine(bundle: Bundle, _: Path) -> Engine:
    cuda = FakeCuda()
    module = FakeOnnxRuntime(cuda)
    return OrtCudaEngine(bundle, capacity=384, batch_size=2, module=module, cuda=cuda)


def trt_engine(bundle: Bundle, folder: Path) -> Engine:
    return BuiltEngines(bundle, folder, max_batch_size=2).open_engine(batch_size=2)


def merged_engine(bundle: Bundle, folder: Path) -> Engine:
    """Engines with the bundle's chain merged into the verify engine."""
    return BuiltEngines(bundle, folder, max_batch_size=2, merge_tree=True).open_engine(batch_size=2)


@pytest.mark.parametrize(
    ("target", "open_engine"),
    [
        ("ort-cpu", cpu_engine),
        ("ort-cuda", cuda_engine),
        ("tensorrt", trt_engine),
        ("tensorrt", merged_engine),
    ],
)
def test_prompt_lookup_changes_no_token(
    target: str,
    open_engine: Callable[[Bundle, Path], Engine],
    tiny_export: Callable[..., Bundle],
    tmp_path: Path,
) -> None:
    bundle = tiny_export(target, heads="none", tree="chain-3", max_length=320)
    assert bundle.manifest.heads is None and "heads" not in bundle.manifest.graphs
    assert not (bundle.path / GRAPH_FILES["heads"]).exists()
    drawn = replace(OPTIONS, sampling=SamplingOptions(temperature=0.2, seed=5))
    with MedusaSession(bundle, engine=open_engine(bundle, tmp_path), max_length=256) as session:
        for options in (OPTIONS, drawn, replace(OPTIONS, processors=(LogitBias(biases={3: 1.0}),))):
            plain = session.generate(REPEATING, replace(options, tree=PLAIN))
            reply = session.generate(REPEATING, options)
            assert reply.token_ids == plain.token_ids
            alone = session.generate(REPEATING, replace(options, lookup_ngram=0))
            assert alone.token_ids == plain.token_ids
            assert set(alone.stats.accept_lengths) == set(plain.stats.accept_lengths) == {1}
        # Whether a grown tree holds copies depends on the machine's step times.
        fixed = replace(OPTIONS, tree=bundle.tree)
        assert max(session.generate(REPEATING, fixed).stats.accept_lengths) > 1
        prompts = [REPEATING, REPEATING[3:], [5, 9]]
        for prompt, reply in zip(prompts, session.generate_batch(prompts, OPTIONS), strict=True):
            assert reply.token_ids == session.generate(prompt, OPTIONS).token_ids


def test_the_tokens_are_those_of_the_model_with_heads(
    headless_bundle: Bundle, tiny_bundle: Bundle
) -> None:
    replies = []
    for bundle in (headless_bundle, tiny_bundle):
        with MedusaSession(bundle, num_threads=1) as session:
            replies.append(session.generate("hello, hello, hello", OPTIONS).token_ids)
    assert replies[0] == replies[1]


def test_a_tree_that_branches_needs_heads(headless_bundle: Bundle) -> None:
    with MedusaSession(headless_bundle, num_threads=1) as session:
        with pytest.raises(TreeError, match="'cartesian-2' branches, and there are no heads: use"):
            session.generate([1], GenerationOptions(tree=load_tree("cartesian-2")))
        longer = session.generate(REPEATING, replace(OPTIONS, tree=chain_tree(7)))
    assert longer.token_ids


def test_where_no_heads_are_known_a_line_says_so(tiny_model: Path, tmp_path: Path) -> None:
    told: list[str] = []
    options = ExportOptions(model=str(tiny_model), output=tmp_path / "bundle", precision="fp32")
    bundle = export_bundle(options, told.append)
    assert any("no heads are known for tiny-llama: the bundle decodes plainly" in x for x in told)
    assert bundle.tree.name == "chain-5", "as many nodes as the target's own tree"
    assert bundle.manifest.verified.keys() == {"text", "tree", "batch"}
