"""Tokens that end a reply, gathered from wherever a checkpoint names one."""

import pytest
from support.tiny_models import make_byte_tokenizer
from transformers import PreTrainedTokenizerFast

from medusa_trt.errors import ExportError
from medusa_trt.export.models.end_tokens import end_token_ids

CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|closes|>\n{% endfor %}"


def tokenizer_with(*special: str, template: str | None = None) -> PreTrainedTokenizerFast:
    """Bytes, `<s>` (256), `</s>` (257), then these tokens."""
    tokenizer = make_byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    tokenizer.chat_template = template
    return tokenizer


def test_everything_that_is_stated_ends_a_reply() -> None:
    tokenizer = tokenizer_with("<a>", "<b>", "<c>")
    assert end_token_ids(tokenizer, [258, [259, 260], None], 400, "x") == [257, 258, 259, 260]


def test_added_tokens_with_a_well_known_name_end_a_reply() -> None:
    tokenizer = tokenizer_with("<|im_start|>", "<|im_end|>", "<|endoftext|>")
    assert end_token_ids(tokenizer, [], 400, "x") == [257, 259, 260]


def test_the_token_that_the_template_writes_behind_a_reply_ends_it() -> None:
    tokenizer = tokenizer_with("<|im_start|>", "<|closes|>", template=CHATML)
    assert end_token_ids(tokenizer, [], 400, "x") == [257, 259]


@pytest.mark.parametrize(
    "template", [CHATML.replace("<|closes|>", ""), "{{ raise_exception('no') }}", "{{ 1 / 0 }}"]
)
def test_a_template_without_such_a_token_adds_none(template: str) -> None:
    tokenizer = tokenizer_with("<|im_start|>", "<|closes|>", template=template)
    assert end_token_ids(tokenizer, [], 400, "x") == [257]


@pytest.mark.parametrize("template", [CHATML, None])
def test_end_tokens_need_not_be_marked_as_special(template: str | None) -> None:
    tokenizer = make_byte_tokenizer()
    tokenizer.add_tokens(["<|im_start|>", "<|closes|>", "<|im_end|>"])
    tokenizer.chat_template = template
    expected = [257, 260] if template is None else [257, 259, 260]
    assert end_token_ids(tokenizer, [], 400, "x") == expected


def test_ids_that_the_model_lacks_are_left_out() -> None:
    assert end_token_ids(tokenizer_with(), [-1, [300, 299]], 300, "x") == [257, 299]


def test_harmony_ends_messages_by_a_token_that_ends_no_turn() -> None:
    tokenizer = tokenizer_with("<|end|>", "<|return|>", "<|call|>")
    assert end_token_ids(tokenizer, [], 400, "x") == [257, 259, 260]


@pytest.mark.parametrize("value", ["</s>", 2.5, True, [1, "x"]])
def test_what_is_no_id_is_refused(value: object) -> None:
    with pytest.raises(ExportError, match="not a token id"):
        end_token_ids(tokenizer_with(), [value], 400, "x")
