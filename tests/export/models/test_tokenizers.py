"""Tokenizers read as their files say, whatever class a checkpoint names."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from support.checkpoints.gguf_files import write_gguf
from support.tiny_models import (
    CHAT_TEMPLATE,
    llama_config,
    make_byte_tokenizer,
    random_model,
    save_tiny_model,
)
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from medusa_trt.errors import ExportError
from medusa_trt.export.models.source import ModelSource, source_from_name
from medusa_trt.export.models.tokenizers import load_tokenizer

LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())


@pytest.fixture
def digits_apart(tmp_path: Path) -> Path:
    """A folder whose tokenizer.json keeps digits apart, under a class that does not."""
    tokens = [*LETTERS, "12", "ĠĠ", "ĠĠĠ", "<s>", "</s>"]
    merges = [("1", "2"), ("Ġ", "Ġ"), ("ĠĠ", "Ġ")]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{N}"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    llama_config().save_pretrained(tmp_path)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    config = {"tokenizer_class": "GPT2Tokenizer", "bos_token": "<s>", "eos_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return tmp_path


def test_the_file_decides_and_the_difference_is_told(digits_apart: Path) -> None:
    tokenizer, warnings = load_tokenizer(source_from_name(str(digits_apart)))
    pieces = tokenizer.convert_ids_to_tokens(tokenizer.encode("a   12"))
    assert pieces == ["a", "ĠĠĠ", "1", "2"]
    assert tokenizer.eos_token == "</s>"
    assert len(warnings) == 1 and "GPT2Tokenizer" in warnings[0]


def test_the_file_is_kept_as_it_is(digits_apart: Path, tmp_path: Path) -> None:
    tokenizer, _ = load_tokenizer(source_from_name(str(digits_apart)))
    tokenizer.save_pretrained(tmp_path / "saved")
    before = json.loads((digits_apart / "tokenizer.json").read_text("utf-8"))
    after = json.loads((tmp_path / "saved/tokenizer.json").read_text("utf-8"))
    for part in ("model", "normalizer", "pre_tokenizer", "decoder"):
        assert after[part] == before[part]


def test_equal_readings_need_no_word(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path)
    tokenizer, warnings = load_tokenizer(source_from_name(str(folder)))
    assert warnings == ()
    assert tokenizer.encode("hi é") == make_byte_tokenizer().encode("hi é")


def test_tokens_of_other_files_are_added_under_their_numbers(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["added_tokens_decoder"] = {"258": {"content": "<extra>", "special": True}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer, _ = load_tokenizer(source_from_name(str(folder)))
    assert tokenizer.encode("a<extra>b")[1] == 258


@pytest.mark.parametrize(
    ("left_out", "template", "added"),
    [
        ((), "tuned", True),
        (("tokenizer.json",), "tuned", False),
        (("tokenizer.json", "tokenizer_config.json"), "tuned", False),
        (("tokenizer_config.json", "chat_template.jinja"), CHAT_TEMPLATE, True),
    ],
)
def test_what_an_adapter_lacks_is_the_models(
    left_out: Sequence[str], template: str, added: bool, tmp_path: Path
) -> None:
    folder = save_tiny_model(tmp_path / "base")
    tuned = make_byte_tokenizer()
    tuned.add_tokens(["<tool>"])
    tuned.chat_template = "tuned"
    tuned.save_pretrained(tmp_path / "adapter")
    for name in left_out:
        (tmp_path / "adapter" / name).unlink()
    tokenizer, _ = load_tokenizer(ModelSource("tuned", str(folder), adapter=tmp_path / "adapter"))
    assert tokenizer.chat_template == template
    assert (tokenizer.encode("<tool>") == [258]) is added


def test_a_template_beside_an_adapter_of_a_gguf_file_comes_first(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", random_model(llama_config()), "Q4_0")
    (tmp_path / "chat_template.jinja").write_text("tuned")
    source = ModelSource("tuned", str(tmp_path), "tiny.gguf", adapter=tmp_path)
    assert load_tokenizer(source)[0].chat_template == "tuned"


def test_what_lies_beside_an_adapter_comes_first(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "base")
    tuned = make_byte_tokenizer()
    tuned.add_tokens(["<tool>"])
    tuned.chat_template = "tuned"
    tuned.save_pretrained(tmp_path / "adapter")
    source = ModelSource("tuned", str(folder), adapter=tmp_path / "adapter")
    tokenizer, _ = load_tokenizer(source)
    assert tokenizer.chat_template == "tuned"
    assert tokenizer.encode("<tool>") == [258]


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    llama_config().save_pretrained(tmp_path)
    with pytest.raises(ExportError, match="cannot load model"):
        load_tokenizer(source_from_name(str(tmp_path)))


def test_a_template_beside_the_tokenizer_is_read(tmp_path: Path) -> None:
    """Older models of several kinds of input have theirs in a file of its own."""
    folder = save_tiny_model(tmp_path)
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": CHAT_TEMPLATE}))
    tokenizer, _ = load_tokenizer(source_from_name(str(folder)))
    assert tokenizer.chat_template == CHAT_TEMPLATE
