"""What a whole export writes, and what it refuses."""

from pathlib import Path

import numpy as np
import pytest
from support.bundle_steps import MAX_LOGIT_DIFFERENCE, expected_logits, exported, prefill
from support.model_families import FAMILIES, MAX_LENGTH, config, weighted_model
from support.tiny_models import (
    TINY_HEADS,
    VOCAB_SIZE,
    llama_config,
    make_byte_tokenizer,
    save_tiny_model,
)
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from medusa_trt.errors import ExportError
from medusa_trt.export.comparison import logits
from medusa_trt.export.pipeline import ExportOptions, export_bundle
from medusa_trt.runtime import tensors as names
from medusa_trt.runtime.engines.ort_cpu import OrtEngine


def test_a_refused_model_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="right before attention"):
        exported(weighted_model(config("cohere")), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [TINY_HEADS, "model"]


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


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_vocabulary_of_seven_tokens_is_enough(precision: str, tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model", llama_config(vocab_size=7, eos_token_id=2))
    words = {"a": 0, "<s>": 1, "</s>": 2, "b": 3, "c": 4, "d": 5, "<unk>": 6}
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<unk>")),
        eos_token="</s>",
        unk_token="<unk>",
    ).save_pretrained(folder)
    options = ExportOptions(
        model=str(folder), heads="none", precision=precision, output=tmp_path / "bundle"
    )
    bundle = export_bundle(options, lambda _: None)
    assert bundle.manifest.model.vocab_size == 7
    assert bundle.manifest.verified["text"].num_positions > 10


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
    tokenizer = make_byte_tokenizer()
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


def test_a_bundle_that_is_too_far_is_refused_before_the_heads_are_traced(
    tiny_model: Path, tiny_heads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(logits.MAX_LOGIT_DIFFERENCE, "fp32", 0.0)
    told: list[str] = []
    options = ExportOptions(
        model=str(tiny_model), heads=tiny_heads, precision="fp32", output=tmp_path / "bundle"
    )
    with pytest.raises(ExportError, match=r"the exported text logits differ .*no bundle was"):
        export_bundle(options, told.append)
    assert [line for line in told if line.startswith(("tracing", "writing"))] == [
        "tracing the verify graph",
        "writing the verify graph and its weights",
    ]
    assert not list(tmp_path.iterdir())
