"""What an export writes and refuses; `test_families.py` compares it with the models."""

import itertools
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from support.bundle_steps import MAX_LOGIT_DIFFERENCE, expected_logits, exported, prefill, verify
from support.model_families import FAMILIES, MAX_LENGTH, config, weighted_model
from support.tiny_models import (
    HIDDEN_SIZE,
    TINY_HEADS,
    VOCAB_SIZE,
    byte_tokenizer,
    head_tensors,
    save_tiny_model,
)

from medusa_trt.errors import ExportError
from medusa_trt.export.graphs.heads_graph import trace_heads_module
from medusa_trt.export.graphs.heads_module import HeadsModule
from medusa_trt.export.graphs.verify_graph import trace_verify
from medusa_trt.export.graphs.verify_module import VerifyModule
from medusa_trt.export.heads.head_checkpoint import heads_from_tensors
from medusa_trt.export.modeling.operator_attention import CachedAttention
from medusa_trt.export.modeling.support import refuse_unsupported
from medusa_trt.export.pipeline import ExportOptions, export_bundle
from medusa_trt.runtime import tensors as names
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.engines.ort_cpu import OrtEngine


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
    model = trace_heads_module(module, HIDDEN_SIZE, opset=23)
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


def test_a_refused_model_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="right before attention"):
        exported(weighted_model(config("cohere")), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [TINY_HEADS, "model"]


def test_the_model_is_given_back_unchanged() -> None:
    model = weighted_model(FAMILIES["llama"])
    tokens = torch.arange(20)[None]
    attributes = model.model.rotary_emb, model.config._attn_implementation
    with torch.no_grad():
        before = model(tokens).logits
    refuse_unsupported(model, MAX_LENGTH)
    trace_verify(VerifyModule(model, MAX_LENGTH, CachedAttention), opset=23)
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


@pytest.mark.parametrize("templates", [{"default": "one", "tool_use": "two"}, {"rag": "three"}])
def test_of_several_chat_templates_the_default_one_is_taken(
    templates: dict[str, str], tiny_heads: Path, tmp_path: Path
) -> None:
    folder = save_tiny_model(tmp_path / "model")
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = templates
    (folder / names.CHAT_TEMPLATE_FILE).unlink()
    tokenizer.save_pretrained(folder)
    bundle = export_bundle(
        ExportOptions(
            model=str(folder),
            heads=tiny_heads,
            tree="chain-2",
            output=tmp_path / "bundle",
            max_length=64,
        ),
        progress=lambda _: None,
    )
    assert bundle.read_optional(names.CHAT_TEMPLATE_FILE) == templates.get("default")
