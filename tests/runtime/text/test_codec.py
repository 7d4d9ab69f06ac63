"""Text and tokens: prompts of all forms, and streams of whole characters."""

import dataclasses
import shutil
from codecs import getincrementaldecoder
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny_models import EOS_ID, make_byte_tokenizer
from tokenizers import Tokenizer, decoders, models, normalizers

from medusa_trt.errors import BundleError, PromptError
from medusa_trt.runtime import tensors as names
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.text.codec import TextCodec, TextStream
from medusa_trt.runtime.text.prompts import Message
from medusa_trt.runtime.text.token_bytes import decoder_from_tokenizer, make_byte_letters

HELLO: list[Message] = [{"role": "user", "content": "hello"}]


def with_template(codec_bundle: Bundle, folder: Path, template: str | None) -> TextCodec:
    copied = Path(shutil.copytree(codec_bundle.path, folder / "copy"))
    if template is not None:
        (copied / names.CHAT_TEMPLATE_FILE).write_text(template)
    return TextCodec(dataclasses.replace(codec_bundle, path=copied))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ('{"bos_token": "<b>", "sep_token": {"content": "<sep>", "lstrip": false}}', "<b><sep>"),
        ('{"bos_token": null, "other_token": "x", "eos_token": 3}', ""),
    ],
)
def test_special_tokens_are_read_in_both_of_their_forms(
    tiny_bundle: Bundle, tmp_path: Path, config: str, expected: str
) -> None:
    bundle = Path(shutil.copytree(tiny_bundle.path, tmp_path / "bundle"))
    (bundle / names.TOKENIZER_CONFIG_FILE).write_text(config)
    copied = dataclasses.replace(tiny_bundle, path=bundle)
    template = "{{ bos_token }}{{ eos_token }}{{ sep_token }}{{ other_token }}"
    assert with_template(copied, tmp_path, template).render_chat(HELLO) == expected
    (bundle / names.TOKENIZER_CONFIG_FILE).write_text("{")
    with pytest.raises(BundleError, match=r"tokenizer_config\.json is damaged"):
        TextCodec(copied)


def test_a_model_without_a_template_says_so(tiny_bundle: Bundle) -> None:
    files = tiny_bundle.manifest.files
    kept = {name: spec for name, spec in files.items() if name != names.CHAT_TEMPLATE_FILE}
    manifest = msgspec.structs.replace(tiny_bundle.manifest, files=kept)
    codec = TextCodec(dataclasses.replace(tiny_bundle, manifest=manifest))
    assert not codec.has_chat_template
    with pytest.raises(PromptError, match="no chat template"):
        codec.encode_chat(HELLO)


def test_a_damaged_tokenizer_is_an_error(tiny_bundle: Bundle, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(tiny_bundle.path, tmp_path / "copy"))
    (copied / names.TOKENIZER_FILE).write_text("{}")
    with pytest.raises(BundleError, match="damaged"):
        TextCodec(dataclasses.replace(tiny_bundle, path=copied))


def test_limits_in_a_tokenizer_do_not_cut_prompts(tiny_bundle: Bundle, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(tiny_bundle.path, tmp_path / "copy"))
    tokenizer = make_byte_tokenizer().backend_tokenizer
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(copied / names.TOKENIZER_FILE))
    codec = TextCodec(dataclasses.replace(tiny_bundle, path=copied))
    assert len(codec.encode("eleven byte", add_special_tokens=False)) == 11


PARTS = [{"type": "text", "text": "see "}, {"type": "text", "text": "this"}]
ROLES = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
LISTS = (
    "{% for m in messages %}{% for part in m['content'] %}<{{ part.text }}>{% endfor %}{% endfor %}"
)


@pytest.mark.parametrize(
    ("template", "content", "text"),
    [(ROLES, PARTS, "[user]see this"), (LISTS, PARTS, "<see ><this>"), (ROLES, None, "[user]")],
)
def test_content_is_text_whatever_form_it_has(
    template: str, content: object, text: str, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    codec = with_template(tiny_bundle, tmp_path, template)
    assert codec.render_chat([{"role": "user", "content": content}]) == text


@pytest.mark.parametrize("part", [{"type": "image_url", "image_url": {}}, {"type": "text"}, 5])
def test_parts_that_are_no_text_are_refused_by_name(
    part: object, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    codec = with_template(tiny_bundle, tmp_path, ROLES)
    with pytest.raises(PromptError, match="a part of type"):
        codec.render_chat([{"role": "user", "content": [PARTS[0], part]}])


def test_text_that_is_no_unicode_is_refused(tiny_bundle: Bundle) -> None:
    with pytest.raises(PromptError, match=r"\\udcff.*, which is no Unicode"):
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


def fallback_tokenizer() -> Tokenizer:
    """A tokenizer of Llama 2's kind: spaces are ▁, and what has no token is spelled in bytes."""
    symbols = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abé"]
    vocab = {symbol: index for index, symbol in enumerate([*symbols, "▁a", "▁b"])}
    merges = [("▁", "a"), ("▁", "b")]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return tokenizer


def streamed(tokenizer: Tokenizer, ids: Sequence[int], sizes: Sequence[int]) -> list[str]:
    """The pieces of a stream that gets tokens in groups of these sizes, then one by one."""
    stream = TextStream(tokenizer, decoder_from_tokenizer(tokenizer))
    pieces, start = [], 0
    for size in (*sizes, *[1] * len(ids)):
        pieces.append(stream.push(ids[start : start + size]))
        start += size
    return pieces


@settings(deadline=None)
@given(
    words=st.lists(
        st.sampled_from(["<s>", "a", " ", "ab a", "é", "日本", "😀", "\n"]), max_size=12
    ),
    sizes=st.lists(st.integers(0, 5), max_size=5),
)
def test_streams_add_up_with_byte_fallback(words: list[str], sizes: list[int]) -> None:
    tokenizer = fallback_tokenizer()
    ids = tokenizer.encode("".join(words)).ids
    text = tokenizer.decode(ids, skip_special_tokens=True)
    pieces = streamed(tokenizer, ids, sizes)
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize(
    "make", [fallback_tokenizer, lambda: make_byte_tokenizer().backend_tokenizer]
)
@settings(deadline=None)
@given(ids=st.lists(st.integers(0, 255) | st.integers(256, 264)), sizes=st.lists(st.integers(0, 5)))
def test_a_stream_gives_the_same_text_however_its_tokens_are_grouped(
    make: Callable[[], Tokenizer], ids: list[int], sizes: list[int]
) -> None:
    # tokenizers' DecodeStream raises for some of these.
    tokenizer = make()
    assert "".join(streamed(tokenizer, ids, sizes)) == "".join(streamed(tokenizer, ids, [len(ids)]))


@settings(deadline=None)
@given(data=st.binary(), sizes=st.lists(st.integers(0, 5)))
def test_a_stream_of_bytes_is_what_utf_8_makes_of_them(data: bytes, sizes: list[int]) -> None:
    tokenizer = make_byte_tokenizer().backend_tokenizer
    letters = {byte: letter for letter, byte in make_byte_letters().items()}
    ids = [token for byte in data if (token := tokenizer.token_to_id(letters[byte])) is not None]
    assert len(ids) == len(data)
    text = "".join(streamed(tokenizer, ids, sizes))
    assert text == getincrementaldecoder("utf-8")("replace").decode(data)


def test_words_before_half_a_character_are_shown_at_once() -> None:
    tokenizer = make_byte_tokenizer().backend_tokenizer
    ids = tokenizer.encode("one \ufffd two \N{PARTY POPPER}").ids
    assert streamed(tokenizer, ids, [len(ids) - 1])[:2] == ["one \ufffd two ", "\N{PARTY POPPER}"]


def test_a_tokenizer_whose_tokens_change_with_their_neighbours_streams_too() -> None:
    vocabulary = {"[UNK]": 0, "play": 1, "##ing": 2, "now": 3}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece()
    assert decoder_from_tokenizer(tokenizer) is None
    assert "".join(streamed(tokenizer, [1, 2, 3], [2])) == "playing now"


def test_special_tokens_are_not_shown(tiny_bundle: Bundle) -> None:
    codec = TextCodec(tiny_bundle)
    ids = codec.encode("hi", add_special_tokens=False)
    assert codec.stream().push([*ids, EOS_ID]) == "hi"
    assert codec.decode([256, *ids, EOS_ID]) == "hi"
