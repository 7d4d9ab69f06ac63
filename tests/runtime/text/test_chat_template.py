"""Chat templates as transformers renders them, in a sandbox."""

from pathlib import Path

import pytest
from support.servers.tool_templates import with_chat_template
from support.tiny_models import make_byte_tokenizer

from medusa_trt.errors import PromptError
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.text.chat_template import find_variables
from medusa_trt.runtime.text.codec import TextCodec
from medusa_trt.runtime.text.prompts import Message

CONVERSATIONS: list[list[Message]] = [
    [{"role": "user", "content": "hello"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "é 日本 <b>&\"'"}],
    [
        {"role": "user", "content": "a\nb"},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "c"},
    ],
    [
        {"role": "system", "content": "  spaces  "},
        {"role": "user", "content": "{{ not a template }} {% if %}"},
        {"role": "assistant", "content": "</s><s>"},
        {"role": "user", "content": "😀\u2028\x00"},
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
    "json-options": (
        "{{ messages | tojson(ensure_ascii=true) }}{{ messages | tojson(separators=(',', ':')) }}"
        "{{ messages | tojson(sort_keys=true, indent=1) }}{{ {'b': none, 'a': [1.5]} | tojson }}"
    ),
    "chatml": (
        "{%- if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nDefault<|im_end|>\n' }}"
        "{%- endif %}{%- for message in messages %}{{- '<|im_start|>' + message.role + '\n' }}"
        "{{- message.content.strip() + '<|im_end|>' + '\n' }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
    ),
    "undefined": (
        "{% if tools is not none %}tools{% endif %}{% if documents is not none %}docs{% endif %}"
        "{{ unk_token }}{{ sep_token }}{% if date_string is not defined %}no date{% endif %}"
    ),
    "generation": (
        "{% set n = 1 %}{% for m in messages %}{% generation %}{% set n = 2 %}{{ m.content }}"
        "{{ n }}{% endgeneration %}{{ n }}{% endfor %}"
    ),
    "date": "{{ strftime_now('%d %B %Y') }}",
    "dict": "{% set d = dict(a=1, **{'b': 2}) %}{% for k in d %}{{ k }}{{ d[k] }}{% endfor %}",
    "blocks": "{% for m in messages %}\n  {% if true %}\n{{ m.role }}\n  {% endif %}\n{% endfor %}",
}


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES.keys())
@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_conversations_are_rendered_as_transformers_does(
    tiny_bundle: Bundle, tmp_path: Path, template: str | None, messages: list[Message]
) -> None:
    bundle, tokenizer = tiny_bundle, make_byte_tokenizer()
    if template is not None:
        bundle = with_chat_template(tiny_bundle, template, tmp_path)
        tokenizer.chat_template = template
    codec = TextCodec(bundle)
    plain = [dict(message) for message in messages]
    expected = tokenizer.apply_chat_template(plain, add_generation_prompt=True, tokenize=False)
    assert codec.render_chat(messages) == expected
    assert codec.encode_chat(messages) == tokenizer.encode(expected, add_special_tokens=False)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages.__class__.__mro__ }}", "'__class__' of 'list' object is unsafe"),
        ("{{ ''['__class__']['__base__'] }}", "'__class__' of 'str' object is unsafe"),
        ("{{ (messages | attr('__class__'))('') }}", "'__class__' of 'list' object is unsafe"),
        ("{{ '{0.__class__.__mro__}'.format(messages) }}", "'__class__' of 'list' .* is unsafe"),
        ("{{ raise_exception.__globals__['sys'] }}", "'__globals__' of 'function' .* is unsafe"),
        ("{{ lipsum.__globals__['os'].popen('id') }}", "'__globals__' of 'function' .* is unsafe"),
        ("{{ namespace(__html__=lipsum) }}", "namespace may not hold '__html__'"),
        ("{% set n = namespace() %}{% set n.__call__ = 1 %}", "namespace may not hold '__call__'"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ messages[0].update(role='x') }}", "unsafe"),
        ("{% include 'other' %}", "refuses this conversation: no loader"),
        ("{% if %}", "refuses this conversation: Expected an expression"),
        ("{{ messages[9].content }}", "refuses this conversation: list object has no element 9"),
        ("{{ 1 / 0 }}", "refuses this conversation: division by zero"),
        ("{{ 'a' + 1 }}", "refuses this conversation: can only concatenate str"),
        ("{{ range(10 ** 9) | list }}", "refuses this conversation: Range too big"),
    ],
)
def test_a_template_may_refuse_but_not_reach_out(
    tiny_bundle: Bundle, tmp_path: Path, template: str, message: str
) -> None:
    codec = TextCodec(with_chat_template(tiny_bundle, template, tmp_path))
    with pytest.raises(PromptError, match=message):
        codec.render_chat(CONVERSATIONS[0])


def test_a_template_cannot_change_the_callers_messages(tiny_bundle: Bundle, tmp_path: Path) -> None:
    template = "{{ dict.update(messages[0], role='x') }}"
    codec = TextCodec(with_chat_template(tiny_bundle, template, tmp_path))
    message = {"role": "user", "content": "hello"}
    codec.render_chat([message])
    assert message == {"role": "user", "content": "hello"}


@pytest.mark.parametrize(
    ("template", "names"),
    [
        ("{% for m in messages %}{{ m.content + eos_token }}{% endfor %}", "messages eos_token"),
        ("{% set a = b %}{{ a }}{% if c is defined %}{{ d.e[f] }}{% endif %}", "b c d f"),
        ("{% generation %}{{ x }}{% endgeneration %}{{ raise_exception(y) }}", "x y"),
        ("{{ namespace(n=0).n }}{{ strftime_now('%d') }}{{ range(3) | list }}", ""),
        ("nothing", ""),
    ],
)
def test_the_variables_are_what_the_template_reads_and_does_not_set(
    template: str, names: str
) -> None:
    assert find_variables(template) == set(names.split())
