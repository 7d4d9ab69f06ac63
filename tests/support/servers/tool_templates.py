"""Chat templates with tools, in the forms of public models, and bundles that have them."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

from medusa_trt.runtime import tensors as names
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.serving.tools.forms import ToolForm

_HEAD = """\
{%- if tools %}tools:
{% for tool in tools %}{{ tool.function.name }}
{% endfor %}{% endif %}
{%- for message in messages %}{% if message.tool_calls %}assistant: """
_TAIL = """</s>
{% else %}{{ message.role }}: {{ message.content }}</s>
{% endif %}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"""


def _make(calls: str) -> str:
    return _HEAD + calls + _TAIL


HERMES = _make(
    """{{ message.content }}{% for call in message.tool_calls %}
{%- if not loop.first %}{{ '\n' }}{% endif %}<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}"""
)
"""Also of Qwen 2.5 and 3 and of Granite 4."""

LLAMA = _make(
    """\
{%- if message.tool_calls | length != 1 %}{{ raise_exception("only one call") }}{% endif %}
{%- set call = message.tool_calls[0].function -%}
{"name": "{{ call.name }}", "parameters": {{ call.arguments | tojson }}}"""
)
"""Of Llama 3.1 to 3.3."""

MISTRAL = _make(
    """<s>[
{%- for call in message.tool_calls %}{% if call.id | length != 9 %}
{{- raise_exception("an id has nine letters and digits") }}{% endif -%}
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson -}}
, "id": "{{ call.id }}"}{% if not loop.last %}, {% endif %}{% endfor %}]"""
)
"""Of Mistral Nemo; `<s>` is the special token in the place of [TOOL_CALLS]."""

NAMED = _make(
    """\
{%- for call in message.tool_calls %}[TOOL_CALLS]{{ call.function.name }}[ARGS]
{{- call.function.arguments | tojson }}{% endfor %}"""
)
"""Of newer models of Mistral."""

DEEPSEEK = _make(
    """<calls>{% for call in message.tool_calls %}<call>{{ call.function.name }}<sep>
{{- '```json\n' + call.function.arguments + '\n```' }}</call>{% endfor %}</calls>"""
)
"""Of DeepSeek: takes the arguments as text alone."""

XML = _make(
    """\
{%- for call in message.tool_calls %}<function={{ call.function.name }}>
{%- for key, value in call.function.arguments.items() %}<{{ key }}>{{ value }}</{{ key }}>
{%- endfor %}</function>{% endfor %}"""
)
"""Of Qwen 3 Coder: the arguments are no JSON."""


_OBJECT: Any = {"name_key": "name", "arguments_key": "arguments"}
FORMS = {
    HERMES: ToolForm(
        begin="<tool_call>\n",
        between="\n</tool_call>\n<tool_call>\n",
        end="\n</tool_call>",
        **_OBJECT,
    ),
    LLAMA: ToolForm(begin="", between=None, end="", name_key="name", arguments_key="parameters"),
    MISTRAL: ToolForm(begin="<s>[", between=", ", end="]", **_OBJECT),
    NAMED: ToolForm(begin="[TOOL_CALLS]", between="[TOOL_CALLS]", end="", middle="[ARGS]"),
    DEEPSEEK: ToolForm(
        begin="<calls><call>",
        between="\n```</call><call>",
        end="\n```</call></calls>",
        middle="<sep>```json\n",
        takes_text=True,
    ),
}


def with_chat_template(bundle: Bundle, template: str, folder: Path) -> Bundle:
    """Returns a copy of the bundle, below a folder, with another chat template."""
    path = shutil.copytree(bundle.path, folder / "with-template")
    (path / names.CHAT_TEMPLATE_FILE).write_text(template, "utf-8")
    return dataclasses.replace(bundle, path=path)
