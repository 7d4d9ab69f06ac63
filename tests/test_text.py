"""Text and tokens: chat templates as transformers renders them, and streams of whole characters."""

import dataclasses
import shutil
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import EOS_ID, byte_tokenizer

from medusa_trt.errors import BundleError, PromptError
from medusa_trt.runtime import bundle as names
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.text import Message, TextCodec

CONVERSATIONS: list[list[Message]] = [
    [{"role": "user", "content": "hello"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "é 日本 <b>&\"'"}],
    [
        {"role": "user", "content": "a\nb"},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "c"},
    ],
]

TEMPLATES = {
    "plain": None,
    "namespace": (
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
        "{{ ns.n }}{{ m.content }}{{ eos_token }}{% endfor %}"
    ),
    "loop-controls": (
        "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}"
        "{{ bos_token }}{{ m['content'] | trim }}{% break %}{% endfor %}"
    ),
    "json": "{{ messages | tojson }}{{ messages[0] | tojson(indent=2) }}",
    "blocks": "{% for m in messages %}\n  {% if true %}\n{{ m.role }}\n  {% endif %}\n{% endfor %}",
}


def with_template(codec_bundle: Bundle, folder: Path, template: str | None) -> TextCodec:
    copied = Path(shutil.copytree(codec_bundle.path, folder / "copy"))
    if template is not None:
        (copied / names.CHAT_TEMPLATE_FILE).write_text(template)
    return TextCodec(dataclasses.replace(codec_bundle, path=copied))


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES.keys())
@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_conversations_are_rendered_as_transformers_does(
    tiny_bundle: Bundle, tmp_path: Path, template: str | None, messages: list[Message]
) -> None:
    codec = with_template(tiny_bundle, tmp_path, template)
    tokenizer = byte_tokenizer()
    if template is not None:
        tokenizer.chat_template = template
    plain = [dict(message) for message in messages]
    expected = tokenizer.apply_chat_template(plain, add_generation_prompt=True, tokenize=False)
    assert codec.render_chat(messages) == expected
    assert codec.encode_chat(messages) == tokenizer.encode(expected, add_special_tokens=False)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages.__class__.__mro__ }}", "refuses this conversation"),
        ("{{ messages.append(1) }}", "refuses this conversation"),
        ("{% if %}", "refuses this conversation"),
    ],
)
def test_a_template_may_refuse_but_not_reach_out(
    tiny_bundle: Bundle, tmp_path: Path, template: str, message: str
) -> None:
    codec = with_template(tiny_bundle, tmp_path, template)
    with pytest.raises(PromptError, match=message):
        codec.render_chat(CONVERSATIONS[0])


def test_strftime_now_gives_the_date(tiny_bundle: Bundle, tmp_path: Path) -> None:
    codec = with_template(tiny_bundle, tmp_path, "{{ strftime_now('%Y') }}")
    assert codec.render_chat(CONVERSATIONS[0]).startswith("20")


def test_a_model_without_a_template_says_so(tiny_bundle: Bundle) -> None:
    files = tiny_bundle.manifest.files
    kept = {name: spec for name, spec in files.items() if name != names.CHAT_TEMPLATE_FILE}
    manifest = msgspec.structs.replace(tiny_bundle.manifest, files=kept)
    codec = TextCodec(dataclasses.replace(tiny_bundle, manifest=manifest))
    assert not codec.has_chat_template
    with pytest.raises(PromptError, match="no chat template"):
        codec.encode_chat(CONVERSATIONS[0])


def test_a_damaged_tokenizer_is_an_error(tiny_bundle: Bundle, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(tiny_bundle.path, tmp_path / "copy"))
    (copied / names.TOKENIZER_FILE).write_text("{}")
    with pytest.raises(BundleError, match="damaged"):
        TextCodec(dataclasses.replace(tiny_bundle, path=copied))


def test_limits_in_a_tokenizer_do_not_cut_prompts(tiny_bundle: Bundle, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(tiny_bundle.path, tmp_path / "copy"))
    tokenizer = byte_tokenizer().backend_tokenizer
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(copied / names.TOKENIZER_FILE))
    codec = TextCodec(dataclasses.replace(tiny_bundle, path=copied))
    assert len(codec.encode("eleven byte", add_special_tokens=False)) == 11


def test_text_that_is_no_unicode_is_refused(tiny_bundle: Bundle) -> None:
    with pytest.raises(PromptError, match="character 2"):
        TextCodec(tiny_bundle).encode("ab\udcff")


@settings(deadline=None)
@given(st.text(min_size=1), st.lists(st.integers(1, 5)))
def test_streams_add_up_and_never_split_a_character(
    tiny_bundle: Bundle, text: str, sizes: list[int]
) -> None:
    codec = TextCodec(tiny_bundle)
    ids = codec.encode(text, add_special_tokens=False)
    assert codec.decode(ids) == text
    stream, pieces = codec.stream(), []
    while ids:
        size = sizes.pop() if sizes else 1
        pieces.append(stream.push(ids[:size]))
        ids = ids[size:]
    assert "".join(pieces) == text
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)


def test_special_tokens_are_not_shown(tiny_bundle: Bundle) -> None:
    codec = TextCodec(tiny_bundle)
    ids = codec.encode("hi", add_special_tokens=False)
    assert codec.stream().push([*ids, EOS_ID]) == "hi"
    assert codec.decode([256, *ids, EOS_ID]) == "hi"
