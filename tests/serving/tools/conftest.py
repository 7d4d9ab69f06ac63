"""What the tests of tools share."""

from collections.abc import Callable
from pathlib import Path

import pytest
from support.servers.tool_templates import with_chat_template

from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.text.codec import TextCodec
from medusa_trt.serving.tools.forms import ToolTemplate


@pytest.fixture
def observe(tiny_bundle: Bundle, tmp_path: Path) -> Callable[[str], ToolTemplate]:
    """A function that looks at a chat template."""
    return lambda template: ToolTemplate(
        TextCodec(with_chat_template(tiny_bundle, template, tmp_path))
    )
