"""Forms of calls, observed in templates of public models."""

from collections.abc import Callable

import pytest
from support.servers.tool_templates import FORMS, MISTRAL, XML
from support.tiny_models import CHAT_TEMPLATE

from medusa_trt.errors import PromptError
from medusa_trt.serving.tools.forms import ToolTemplate


@pytest.mark.parametrize("template", FORMS)
def test_the_form_is_what_stands_around_a_call(
    observe: Callable[[str], ToolTemplate], template: str
) -> None:
    assert observe(template).form == FORMS[template]


def test_special_tokens_of_the_form_are_shown(observe: Callable[[str], ToolTemplate]) -> None:
    assert observe(MISTRAL).shown_ids == (256,)


@pytest.mark.parametrize(
    ("template", "reason"),
    [(CHAT_TEMPLATE, "does not show them"), (XML, "no other form is read")],
)
def test_a_template_without_a_form_says_so(
    observe: Callable[[str], ToolTemplate], template: str, reason: str
) -> None:
    with pytest.raises(PromptError, match=reason):
        _ = observe(template).form
