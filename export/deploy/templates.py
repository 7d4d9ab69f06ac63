"""Renders the templates of deployed files, which are beside this module."""

import shlex
from collections.abc import Mapping
from importlib import resources

import jinja2


def render_template(name: str, values: Mapping[str, object]) -> str:
    """Renders the template `<name>.jinja`; a value that is missing is an error."""
    environment = jinja2.Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["quote"] = shlex.quote
    file = resources.files("medusa_trt.export.deploy") / f"{name}.jinja"
    return environment.from_string(file.read_text("utf-8")).render(values)
