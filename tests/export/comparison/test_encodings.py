"""Texts and conversations as a bundle's files read them, against the model's tokenizer."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support.tiny_models import make_byte_tokenizer

from medusa_trt.errors import ExportError
from medusa_trt.export.comparison.encodings import compare_encodings
from medusa_trt.runtime import tensors as names
from medusa_trt.runtime.bundle import Bundle


def read(folder: Path, **changes: Any) -> Bundle:
    """The bundle with changed fields of its tokenizer.json."""
    bundle = Bundle.open(folder, check_hashes=False)
    path = folder / names.TOKENIZER_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return bundle


def test_the_files_of_an_export_agree(bundle: Path) -> None:
    compare_encodings(read(bundle), make_byte_tokenizer())


def test_the_first_difference_is_shown(bundle: Path) -> None:
    changed = read(bundle, normalizer={"type": "Lowercase"})
    with pytest.raises(ExportError) as refusal:
        compare_encodings(changed, make_byte_tokenizer())
    text = str(refusal.value)
    assert "from token 1 on as ['i', 't', \"'\", 's'] (" in text and "tokenizer as ['I'," in text


def test_a_start_token_counts(bundle: Path) -> None:
    start: dict[str, Any] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<s>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [256], "tokens": ["<s>"]}},
    }
    changed = read(bundle, post_processor=start)
    with pytest.raises(ExportError, match=r"from token 0 on as \['<s>', 'a'"):
        compare_encodings(changed, make_byte_tokenizer())


def test_chat_templates_are_compared(bundle: Path) -> None:
    tokenizer, unchanged = make_byte_tokenizer(), read(bundle)
    tokenizer.chat_template = "{{ messages[0].content }}!"
    with pytest.raises(ExportError, match="the bundle reads 'Hi,  why"):
        compare_encodings(unchanged, tokenizer)
    tokenizer.chat_template = "{{ raise_exception('never') }}"
    compare_encodings(unchanged, tokenizer)


def test_ids_that_the_model_lacks_are_refused(bundle: Path) -> None:
    whole = read(bundle)
    model = msgspec.structs.replace(whole.manifest.model, vocab_size=90)
    small = Bundle(bundle, msgspec.structs.replace(whole.manifest, model=model), whole.tree)
    with pytest.raises(ExportError, match=r"as token \d+ \('.'\), the model has 90 tokens: give"):
        compare_encodings(small, make_byte_tokenizer())
