"""Exported bundles against the Hugging Face models they come from, for each supported family."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from tiny_models import (
    HIDDEN_SIZE,
    TINY_HEADS,
    VOCAB_SIZE,
    byte_tokenizer,
    head_tensors,
    random_model,
    save_tiny_heads,
)
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from medusa_trt.errors import ExportError
from medusa_trt.export.graph import VerifyModule
from medusa_trt.export.head_checkpoint import heads_from_tensors
from medusa_trt.export.heads import HeadsModule
from medusa_trt.export.onnx_export import heads_graph
from medusa_trt.export.pipeline import ExportOptions, export_bundle
from medusa_trt.export.support import refuse_unsupported
from medusa_trt.export.verify import MAX_RELATIVE_ERROR, agreement
from medusa_trt.runtime import bundle as names
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.operators import library_path
from medusa_trt.runtime.ort_engine import OrtEngine
from medusa_trt.tree_configs import MedusaTree, chain_tree

MAX_LENGTH = 64
MAX_LOGIT_DIFFERENCE = 1e-3
MAX_CACHE_DIFFERENCE = 1e-5
NUM_PREFIX = 50


def config(model_type: str, **changes: object) -> PretrainedConfig:
    """A tiny model of a family."""
    sizes: dict[str, object] = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": HIDDEN_SIZE,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "bos_token_id": 256,
        "eos_token_id": 257,
        "initializer_range": 0.2,
    }
    return AutoConfig.for_model(model_type, **(sizes | changes))


def rope(rope_type: str, **parameters: float) -> PretrainedConfig:
    """A Llama with rotary scaling."""
    values = {"rope_type": rope_type, "rope_theta": 10000.0, "factor": 4.0, **parameters}
    return config("llama", rope_parameters=values)


FULL = ["full_attention", "full_attention"]
FAMILIES = {
    "llama": config("llama"),
    "llama-tied-biased": config(
        "llama", tie_word_embeddings=True, attention_bias=True, mlp_bias=True
    ),
    "llama-wide-heads": config("llama", head_dim=32),
    "llama-linear-rope": rope("linear"),
    "llama-llama3-rope": rope(
        "llama3",
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=128,
    ),
    "llama-yarn-rope": rope("yarn", original_max_position_embeddings=128),
    "mistral": config("mistral", sliding_window=None),
    "mistral-window": config("mistral", sliding_window=MAX_LENGTH),
    "qwen2": config("qwen2"),
    "qwen2-window": config(
        "qwen2",
        use_sliding_window=True,
        sliding_window=MAX_LENGTH,
        layer_types=["full_attention", "sliding_attention"],
    ),
    "smollm3": config("smollm3", no_rope_layers=[1, 1]),
    "qwen3": config("qwen3", head_dim=32),
    "granite": config(
        "granite",
        logits_scaling=7.0,
        residual_multiplier=0.7,
        embedding_multiplier=3.0,
        attention_multiplier=0.3,
    ),
    "olmo2": config("olmo2"),
    "phi3": config("phi3"),
    "gemma": config("gemma", head_dim=16),
    "gpt_neox": config("gpt_neox", num_attention_heads=1, rotary_pct=0.25),
    "phi": config("phi", num_attention_heads=2, num_key_value_heads=1, partial_rotary_factor=0.5),
    "starcoder2": config("starcoder2", sliding_window=None),
}


def weighted_model(config: PretrainedConfig) -> PreTrainedModel:
    """Random weights, with norms and biases that are not just ones and zeros."""
    model = random_model(config)
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


def exported(
    model: PreTrainedModel,
    folder: Path,
    *,
    tensors: dict[str, torch.Tensor] | None = None,
    max_length: int | None = MAX_LENGTH,
    precision: str = "fp32",
) -> Bundle:
    """Saves a model with a tokenizer, and exports it with random heads."""
    folder.mkdir(exist_ok=True)
    model.save_pretrained(folder / "model")
    byte_tokenizer().save_pretrained(folder / "model")
    heads = save_tiny_heads(folder / TINY_HEADS, tensors)
    options = ExportOptions(
        model=str(folder / "model"),
        heads=heads,
        tree="chain-2",
        output=folder / "bundle",
        max_length=max_length,
        precision=precision,
    )
    return export_bundle(options, progress=lambda _: None)


@dataclass(frozen=True)
class Step:
    """Outputs of one verify step, copied."""

    argmax: NDArray[np.int64]
    hidden: NDArray[np.float32]
    logits: NDArray[np.float32]


def verify(
    engine: OrtEngine,
    tokens: NDArray[np.int64],
    tree: MedusaTree,
    past_length: int,
    rows: Sequence[int] | None = None,
) -> Step:
    outputs = engine.verify(tokens[None], tree, [past_length], rows=rows, logits=True)
    assert outputs.logits is not None
    return Step(outputs.argmax[0].copy(), outputs.hidden[0].copy(), outputs.logits[0].copy())


def prefill(engine: OrtEngine, tokens: NDArray[np.int64], chunk: int) -> NDArray[np.float32]:
    """Logits of every token, read in chunks."""
    pieces = []
    for start in range(0, len(tokens), chunk):
        piece = tokens[start : start + chunk]
        pieces.append(verify(engine, piece, chain_tree(len(piece) - 1), start).logits)
    return np.concatenate(pieces)


def cached(engine: OrtEngine, length: int) -> NDArray[np.float32]:
    """The first rows of every layer's keys and values."""
    return engine.cache.floats(length)


def expected_logits(model: PreTrainedModel, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
    """The model's own, after the last of these tokens."""
    with torch.no_grad():
        logits: NDArray[np.float32] = model(torch.from_numpy(tokens)[None]).logits[0, -1].numpy()
    return logits


def random_tree(rng: np.random.Generator, num_nodes: int) -> MedusaTree:
    """Grown node by node, three deep at least."""
    paths: list[tuple[int, ...]] = [(), (0,), (1,), (1, 0), (1, 0, 0), (1, 0, 1)]
    while len(paths) < num_nodes:
        parent = paths[rng.integers(len(paths))]
        paths.append((*parent, sum(path[:-1] == parent for path in paths if path)))
    return MedusaTree.from_choices(paths[1:])


def path_to(tree: MedusaTree, node: int) -> list[int]:
    """The nodes from the root to this one."""
    path = [node]
    while path[0]:
        path.insert(0, int(tree.parents[path[0]]))
    return path


VARIANTS = {"llama-linear-rope", "llama-yarn-rope", "llama-tied-biased", "qwen2-window", "granite"}
"""Families whose forward is nearly that of another one."""


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(family, marks=[pytest.mark.slow] if family in VARIANTS else [])
        for family in FAMILIES
    ],
)
def test_a_bundle_computes_what_the_model_does(family: str, tmp_path: Path) -> None:
    model = weighted_model(FAMILIES[family])
    engine = OrtEngine(exported(model, tmp_path), capacity=2 * MAX_LENGTH)
    rng = np.random.default_rng(0)
    text = rng.integers(0, VOCAB_SIZE, NUM_PREFIX)
    tree = random_tree(rng, 20)
    tokens = rng.integers(0, VOCAB_SIZE, tree.num_nodes)

    whole = prefill(engine, text, NUM_PREFIX)
    for chunk in (1, 7, 16):
        difference = np.abs(prefill(engine, text, chunk) - whole).max()
        assert difference <= MAX_LOGIT_DIFFERENCE
    step = verify(engine, tokens, tree, NUM_PREFIX)
    for node in range(tree.num_nodes):
        expected = expected_logits(model, np.append(text, tokens[path_to(tree, node)]))
        assert np.abs(step.logits[node] - expected).max() <= MAX_LOGIT_DIFFERENCE
    assert (step.argmax == step.logits.argmax(-1)).all()

    rows = [tree.num_nodes - 1, 3, 3, 0]
    some = verify(engine, tokens, tree, NUM_PREFIX, rows)
    assert (some.argmax == step.argmax[rows]).all()
    assert np.abs(some.hidden - step.hidden[rows]).max() <= MAX_CACHE_DIFFERENCE
    assert np.abs(some.logits - step.logits[rows]).max() <= MAX_LOGIT_DIFFERENCE

    accepted = path_to(tree, tree.num_nodes - 1)
    engine.commit(0, NUM_PREFIX, accepted)
    longer = np.append(text, tokens[accepted])
    committed = cached(engine, len(longer))
    next_token = rng.integers(0, VOCAB_SIZE, 1)
    after = verify(engine, next_token, chain_tree(0), len(longer)).logits[0]
    expected = expected_logits(model, np.append(longer, next_token))
    assert np.abs(after - expected).max() <= MAX_LOGIT_DIFFERENCE
    prefill(engine, longer, len(longer))
    assert np.abs(committed - cached(engine, len(longer))).max() <= MAX_CACHE_DIFFERENCE
    engine.close()


def constant_products(bundle: Bundle) -> list[str]:
    """Matrix products of a bundle's graphs that ONNX Runtime would compute."""
    return [
        f"{graph}: {node.name}"
        for graph in ("verify", "heads")
        for node in ir.load(bundle.graph_path(graph)).graph
        if node.op_type in ("MatMul", "Gemm") and node.domain == ""
    ]


@pytest.mark.skipif(library_path() is None, reason="built without a C++ compiler")
@pytest.mark.parametrize(
    ("family", "precision"), [*((family, "int8") for family in FAMILIES), ("llama", "int4")]
)
def test_a_quantized_bundle_is_close_to_the_model_and_exact_among_its_own_steps(
    family: str, precision: str, tmp_path: Path
) -> None:
    model = weighted_model(FAMILIES[family])
    bundle = exported(model, tmp_path, precision=precision)
    assert not constant_products(bundle)
    engine = OrtEngine(bundle, capacity=2 * MAX_LENGTH)
    rng = np.random.default_rng(0)
    text = rng.integers(0, VOCAB_SIZE, NUM_PREFIX)
    tree = random_tree(rng, 20)
    tokens = rng.integers(0, VOCAB_SIZE, tree.num_nodes)
    whole = prefill(engine, text, NUM_PREFIX)
    for chunk in (1, 7, 16):
        assert np.array_equal(prefill(engine, text, chunk), whole)
    step = verify(engine, tokens, tree, NUM_PREFIX)
    expected = np.stack(
        [
            expected_logits(model, np.append(text, tokens[path_to(tree, node)]))
            for node in range(tree.num_nodes)
        ]
    )
    assert agreement(step.logits, expected).relative_error <= MAX_RELATIVE_ERROR[precision]
    path = path_to(tree, tree.num_nodes - 1)
    one_by_one = prefill(engine, np.append(text, tokens[path]), 1)[NUM_PREFIX:]
    assert np.array_equal(one_by_one, step.logits[path])
    engine.close()


def truncated_heads() -> dict[str, torch.Tensor]:
    """Heads that choose from every third token."""
    token_map = torch.arange(0, VOCAB_SIZE, 3)
    return head_tensors(vocab_size=len(token_map)) | {"token_map": token_map}


@pytest.mark.parametrize(
    "tensors",
    [
        head_tensors(),
        head_tensors(vocab_size=None, num_layers=1),
        head_tensors(vocab_size=None) | {"token_map": torch.arange(0, VOCAB_SIZE, 3)},
        truncated_heads(),
    ],
    ids=["own", "shared", "shared-truncated", "truncated"],
)
def test_the_heads_graph_drafts_what_the_heads_do(tensors: dict[str, torch.Tensor]) -> None:
    unembedding = torch.randn(VOCAB_SIZE, HIDDEN_SIZE, generator=torch.Generator().manual_seed(3))
    heads = heads_from_tensors(tensors, "heads")
    module = HeadsModule(heads, unembedding, top_k=5)
    model = heads_graph(module, HIDDEN_SIZE, opset=23)
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    for seed in range(5):
        hidden = torch.randn(2, HIDDEN_SIZE, generator=torch.Generator().manual_seed(seed))
        (draft_ids,) = session.run([names.DRAFT_IDS], {names.HIDDEN: hidden.numpy()})
        assert (draft_ids == module(hidden).numpy()).all()
        assert draft_ids.shape == (2, 4, 5)
        if heads.token_map is not None:
            assert (draft_ids % 3 == 0).all()


def external_ranges(bundle: Bundle, graph: str) -> dict[str, tuple[int, int]]:
    """Where each external weight of a graph begins and ends in the bundle's file of weights."""
    model = onnx.load(bundle.graph_path(graph), load_external_data=False)
    ranges = {}
    for tensor in model.graph.initializer:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if entries:
            assert entries["location"] == names.WEIGHTS_FILE
            start = int(entries["offset"])
            ranges[tensor.name] = start, start + int(entries["length"])
    return ranges


@pytest.mark.parametrize("tied", [False, True])
def test_each_weight_is_stored_once(tied: bool, tmp_path: Path) -> None:
    model = weighted_model(config("granite", logits_scaling=7.0, tie_word_embeddings=tied))
    bundle = exported(model, tmp_path, tensors=head_tensors(vocab_size=None))
    verify_ranges = external_ranges(bundle, "verify")
    heads_ranges = external_ranges(bundle, "heads")
    unembedding = heads_ranges["unembedding"]
    assert unembedding in verify_ranges.values()
    assert unembedding[1] - unembedding[0] == VOCAB_SIZE * HIDDEN_SIZE * 4
    ranges = sorted({*verify_ranges.values(), *heads_ranges.values()})
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(ranges))
    sizes = [end - start for start, end in ranges]
    assert sizes.count(VOCAB_SIZE * HIDDEN_SIZE * 4) == (1 if tied else 2)
    assert ranges[-1][1] == (bundle.path / names.WEIGHTS_FILE).stat().st_size
    for graph in names.GRAPH_FILES:
        assert bundle.graph_path(graph).stat().st_size < 64 * 1024


def test_the_tree_graph_feeds_the_verify_graph(tiny_bundle: Bundle) -> None:
    tree = tiny_bundle.tree
    tree_session = onnxruntime.InferenceSession(tiny_bundle.graph_path("tree"))
    outputs = [value.name for value in tree_session.get_outputs()]
    assert outputs == [names.TREE_MASK, names.POSITION_OFFSETS]
    feeds = dict(zip(outputs, tree_session.run(outputs, {}), strict=True))
    assert ((feeds[names.TREE_MASK] == 0) == tree.attn_mask).all()
    assert (feeds[names.TREE_MASK][~tree.attn_mask] < -1e30).all()
    assert (feeds[names.POSITION_OFFSETS] == tree.position_offsets).all()

    engine = OrtEngine(tiny_bundle)
    tokens = np.random.default_rng(0).integers(0, VOCAB_SIZE, tree.num_nodes)
    expected = verify(engine, tokens, tree, 0).logits
    session = onnxruntime.InferenceSession(tiny_bundle.graph_path("verify"))
    model = tiny_bundle.manifest.model
    for value in session.get_inputs():
        if value.name.startswith("past_key_values"):
            shape = (1, model.num_kv_heads, 100, model.head_dim)
            feeds[value.name] = np.zeros(shape, np.float32)
    feeds |= {
        names.INPUT_IDS: tokens[None],
        names.PAST_LENGTH: np.array([0]),
        names.ROWS: np.arange(tree.num_nodes),
    }
    (logits,) = session.run([names.LOGITS], feeds)
    assert np.abs(logits - expected).max() <= MAX_LOGIT_DIFFERENCE


def test_the_graphs_have_the_interface_of_the_manifest(tiny_bundle: Bundle) -> None:
    layers = range(tiny_bundle.manifest.model.num_layers)
    cache = [(layer, kind) for layer in layers for kind in ("key", "value")]
    inputs = [names.INPUT_IDS, names.TREE_MASK, names.POSITION_OFFSETS, names.PAST_LENGTH]
    inputs += [names.ROWS, *(names.past_name(*place) for place in cache)]
    outputs = [names.ARGMAX, names.HIDDEN, names.LOGITS]
    outputs += [names.present_name(*place) for place in cache]
    expected = {
        "verify": (inputs, outputs),
        "heads": ([names.HIDDEN], [names.DRAFT_IDS]),
        "tree": ([], [names.TREE_MASK, names.POSITION_OFFSETS]),
    }
    for graph, interface in expected.items():
        session = onnxruntime.InferenceSession(tiny_bundle.graph_path(graph))
        spec = tiny_bundle.manifest.graphs[graph]
        for found, listed, wanted in zip(
            (session.get_inputs(), session.get_outputs()),
            (spec.inputs, spec.outputs),
            interface,
            strict=True,
        ):
            assert [value.name for value in found] == [value.name for value in listed] == wanted
            assert [value.shape for value in found] == [value.shape for value in listed]


REFUSED = {
    "a sliding window of 32 tokens": config("mistral", sliding_window=32),
    "attention soft-capping at 50": config(
        "gemma2", layer_types=FULL, sliding_window=None, attn_logit_softcapping=50.0
    ),
    "layers of another kind than full attention \\(conv\\)": config(
        "lfm2", layer_types=["conv", "full_attention"]
    ),
    "attention outside the attention interface": config("stablelm"),
    "positions other than one rotary embedding": config("gpt2"),
    "a rotary embedding for each type of layer": config(
        "gemma3_text", layer_types=FULL, sliding_window=None
    ),
    "dynamic rotary scaling": rope("dynamic"),
    "mixture-of-experts layers": config("mixtral", sliding_window=None),
    "no rotary embedding in layer 3": config("smollm3", num_hidden_layers=4),
    "a rotary embedding other than of halves, right before attention": config("cohere"),
    "24 rotated of 24 head dimensions": config("llama", head_dim=24),
    "attention other than once in each layer": config("diffllama"),
    "an attention mask of their own": config("doge"),
}


@pytest.mark.parametrize("feature", REFUSED)
def test_what_would_come_out_wrong_is_refused_by_name(feature: str) -> None:
    model = weighted_model(REFUSED[feature])
    pattern = f"^{model.config.model_type} models with {feature}.*not supported: [^\n]*$"
    with pytest.raises(ExportError, match=pattern):
        refuse_unsupported(model, MAX_LENGTH)


def test_norms_between_rotation_and_attention_are_refused_unless_they_commute() -> None:
    refuse_unsupported(random_model(config("hunyuan_v1_dense", head_dim=16)), MAX_LENGTH)
    with pytest.raises(ExportError, match="right before attention"):
        refuse_unsupported(weighted_model(config("hunyuan_v1_dense", head_dim=16)), MAX_LENGTH)


def test_a_window_shorter_than_the_longest_sequence_is_refused() -> None:
    model = weighted_model(FAMILIES["mistral-window"])
    refuse_unsupported(model, MAX_LENGTH)
    with pytest.raises(ExportError, match=r"window of 64 tokens \(a --max-length of at most that"):
        refuse_unsupported(model, MAX_LENGTH + 1)


def test_a_refused_model_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="sliding window"):
        exported(weighted_model(config("mistral", sliding_window=32)), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [TINY_HEADS, "model"]


def test_the_model_is_given_back_unchanged() -> None:
    model = weighted_model(FAMILIES["llama"])
    tokens = torch.arange(20)[None]
    attributes = model.model.rotary_emb, model.config._attn_implementation
    with torch.no_grad():
        before = model(tokens).logits
    refuse_unsupported(model, MAX_LENGTH)
    module = VerifyModule(model, MAX_LENGTH, "group_query_attention")
    assert model.model.rotary_emb is not attributes[0]
    module.release()
    assert (model.model.rotary_emb, model.config._attn_implementation) == attributes
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, before)


@pytest.mark.parametrize("max_length", [63, 513])
def test_a_maximum_length_out_of_range_is_refused(
    tiny_model: Path, tiny_heads: Path, tmp_path: Path, max_length: int
) -> None:
    options = ExportOptions(
        model=str(tiny_model),
        heads=tiny_heads,
        tree="chain-2",
        output=tmp_path / "bundle",
        max_length=max_length,
    )
    with pytest.raises(ExportError, match=f"--max-length is {max_length}: .* 64 to 512$"):
        export_bundle(options, progress=lambda _: None)


def test_the_last_position_still_computes_what_the_model_does(tmp_path: Path) -> None:
    model = weighted_model(config("llama", max_position_embeddings=MAX_LENGTH))
    bundle = exported(model, tmp_path, max_length=None)
    assert bundle.manifest.model.max_length == MAX_LENGTH
    text = np.random.default_rng(0).integers(0, VOCAB_SIZE, MAX_LENGTH + 20)
    engine = OrtEngine(bundle, capacity=len(text))
    logits = prefill(engine, text, MAX_LENGTH)
    for length in (MAX_LENGTH, len(text)):
        difference = np.abs(logits[length - 1] - expected_logits(model, text[:length])).max()
        assert difference <= MAX_LOGIT_DIFFERENCE


def test_two_exports_of_a_model_are_equal(tmp_path: Path) -> None:
    contents = []
    for folder in (tmp_path / "first", tmp_path / "second"):
        bundle = exported(weighted_model(FAMILIES["llama"]), folder)
        contents.append({path.name: path.read_bytes() for path in bundle.path.iterdir()})
    assert contents[0] == contents[1]
