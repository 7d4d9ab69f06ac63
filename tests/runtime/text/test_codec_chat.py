"""Tools, variables and begun replies in chat templates; start tokens that a prompt has already."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from support.tiny_models import make_byte_tokenizer, sentencepiece_tokenizer
from tokenizers import AddedToken, processors

from medusa_trt.errors import PromptError
from medusa_trt.runtime import tensors as names
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.options import GenerationOptions
from medusa_trt.runtime.processors.grammar import Grammar, GrammarTokenizer
from medusa_trt.runtime.session import MedusaSession
from medusa_trt.runtime.text import codec as codec_module
from medusa_trt.runtime.text.codec import TextCodec
from medusa_trt.runtime.text.prompts import ChatPrompt, Message

CHATML = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}"
    "{{ '<|' + m.role + '|>' + m.content + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}"
    "{% if enable_thinking is false %}{{ '<think></think>' }}{% endif %}{% endif %}"
)
STRIPPING = CHATML.replace("m.content", "(m.content | trim)")
USER: Message = {"role": "user", "content": "hi"}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]


@pytest.fixture
def opened(bundle: Path) -> Bundle:
    """A bundle whose files a test may change."""
    return Bundle.open(bundle)


def codec_with(opened: Bundle, template: str) -> TextCodec:
    (opened.path / names.CHAT_TEMPLATE_FILE).write_text(template)
    return TextCodec(opened)


def expected(messages: list[Message], template: str, **values: Any) -> str:
    plain = [dict(message) for message in messages]
    text = make_byte_tokenizer().apply_chat_template(
        plain, chat_template=template, tokenize=False, **values
    )
    assert isinstance(text, str)
    return text


def test_tools_and_variables_reach_the_template(opened: Bundle) -> None:
    codec = codec_with(opened, CHATML)
    prompt = ChatPrompt(messages=[USER], tools=TOOLS, variables={"enable_thinking": False})
    text = codec.render_chat(prompt)
    values: dict[str, Any] = {"tools": TOOLS, "enable_thinking": False}
    assert text == expected([USER], CHATML, add_generation_prompt=True, **values)
    assert text.endswith("<think></think>") and '"name": "f"' in text


def test_a_template_without_variables_says_so(opened: Bundle) -> None:
    prompt = ChatPrompt(messages=[USER], variables={"foo": 1})
    codec = codec_with(opened, "{% for m in messages %}{{ m.content }}{% endfor %}")
    with pytest.raises(PromptError, match="no variable 'foo' and no other:"):
        codec.render_chat(prompt)


@pytest.mark.parametrize("template", [CHATML, STRIPPING])
@pytest.mark.parametrize("begun", ["Sure", "Sure ", " Sure: ", "hi", "a\nb"])
def test_a_reply_goes_on_with_a_last_message_of_the_assistant(
    opened: Bundle, template: str, begun: str
) -> None:
    messages: list[Message] = [USER, {"role": "assistant", "content": begun}]
    text = codec_with(opened, template).render_chat(messages)
    assert text == expected(messages, template, continue_final_message=True)
    parts: list[Message] = [USER, {**messages[1], "content": [{"type": "text", "text": begun}]}]
    assert codec_with(opened, template).render_chat(parts) == text


def test_a_template_that_shows_nothing_but_parts_gets_text_as_a_part(opened: Bundle) -> None:
    """As those of LLaVA and SmolVLM: of a plain text they show nothing."""
    llava = (
        "{% for m in messages %}{{ m['role'] | upper + ': ' }}"
        "{% for content in m['content'] | selectattr('type', 'equalto', 'text') %}"
        "{{ content['text'] + ' ' }}{% endfor %}{% endfor %}"
    )
    codec = codec_with(opened, llava)
    parts: Message = {"role": "user", "content": [{"type": "text", "text": "hi"}]}
    for message in (USER, parts):
        assert codec.render_chat([message]) == "USER: hi "
    assert codec_with(opened, CHATML).render_chat([parts]).startswith("<|user|>hi<|end|>")


def test_a_template_that_hides_the_begun_reply_is_named(opened: Bundle) -> None:
    codec = codec_with(opened, "{{ messages[0].content }}")
    with pytest.raises(PromptError, match="does not show the last message"):
        codec.render_chat([USER, {"role": "assistant", "content": "Sure"}])


def test_the_reply_that_goes_on_keeps_its_first_space(opened: Bundle) -> None:
    tokenizer = sentencepiece_tokenizer()
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.save(str(opened.path / names.TOKENIZER_FILE))
    template = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
    (opened.path / names.CHAT_TEMPLATE_FILE).write_text(template)
    options = GenerationOptions(grammar=Grammar.from_regex(" tr"), max_new_tokens=2)
    begun: list[Message] = [USER, {"role": "assistant", "content": "po"}]
    with MedusaSession(opened) as session:
        assert session.generate([USER], options).text == "tr"
        assert session.generate(begun, options).text == " tr"
        assert session.generate(ChatPrompt(messages=begun), options).text == " tr"


def test_a_start_token_in_the_prompt_is_not_doubled(opened: Bundle) -> None:
    tokenizer = make_byte_tokenizer().backend_tokenizer
    tokenizer.add_special_tokens([AddedToken("<s>", special=True)])
    start = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", start)])
    tokenizer.save(str(opened.path / names.TOKENIZER_FILE))
    codec = TextCodec(opened)
    (letter,) = codec.encode("a", add_special_tokens=False)
    assert codec.encode("a") == codec.encode("<s>a") == [start, letter]
    assert codec.encode("<s><s>a") == [start, start, letter]
    assert codec.encode("<s><s>a", add_special_tokens=False) == [start, start, letter]
    assert codec.encode("") == [start]


def test_an_end_token_that_the_tokenizer_adds_is_left_out(opened: Bundle) -> None:
    tokenizer = make_byte_tokenizer().backend_tokenizer
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in ("<s>", "</s>")])
    start, end = (tokenizer.token_to_id(text) for text in ("<s>", "</s>"))
    added = [("<s>", start), ("</s>", end)]
    for form, before in (("<s> $A </s>", [start]), ("$A </s>", []), ("$A </s> </s>", [])):
        tokenizer.post_processor = processors.TemplateProcessing(form, None, added)
        tokenizer.save(str(opened.path / names.TOKENIZER_FILE))
        codec = TextCodec(opened)
        (letter,) = codec.encode("a", add_special_tokens=False)
        assert codec.encode("a") == [*before, letter]
        assert codec.encode("a</s>") == [*before, letter, end], "the user's own stays"
        assert codec.encode("") == before


def test_names_that_a_template_sets_or_that_are_no_variables_are_refused(opened: Bundle) -> None:
    codec = codec_with(opened, CHATML)
    assert codec.render_chat(ChatPrompt(messages=[USER], variables={"enable_thinking": False}))
    for name in ("think", "messages", "m", "raise_exception"):
        with pytest.raises(PromptError, match=f"no variable '{name}', only enable_thinking"):
            codec.render_chat(ChatPrompt(messages=[USER], variables={name: 1}))


def test_threads_share_one_tokenizer_for_grammars(
    opened: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each takes 50 MB for a real vocabulary."""
    begun: list[GrammarTokenizer] = []
    another = Event()

    class Slow(GrammarTokenizer):
        def __init__(self, *arguments: Any) -> None:
            begun.append(self)
            if len(begun) > 1:
                another.set()
            another.wait(0.1)
            super().__init__(*arguments)

    monkeypatch.setattr(codec_module, "GrammarTokenizer", Slow)
    codec = TextCodec(opened)
    options = GenerationOptions(grammar=Grammar.from_regex("a"))
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(codec.prepare_options, [options] * 3))
    assert len(begun) == 1
