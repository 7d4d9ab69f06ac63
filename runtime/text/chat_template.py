"""The language of chat templates: Jinja as transformers has it, in a sandbox."""

import json
from datetime import datetime
from functools import partial
from typing import Any

from jinja2 import TemplateError, meta, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace


class _GenerationTag(Extension):
    """Renders the content of `{% generation %}`, which only marks replies for training."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Scope:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Namespace(Namespace):
    """A Jinja namespace that refuses Python's private names, as transformers does."""

    def __init__(self, /, *args: Any, **values: Any) -> None:
        super().__init__()
        for name, value in dict(*args, **values).items():
            self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        if str(name).startswith("_"):
            raise SecurityError(f"a namespace may not hold {name!r}")
        super().__setitem__(name, value)


def make_environment() -> ImmutableSandboxedEnvironment:
    """Makes the Jinja environment of transformers, in a sandbox: a template comes with a model."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationTag]
    )
    # Like transformers, this writes JSON without HTML escapes.
    environment.filters["tojson"] = partial(json.dumps, ensure_ascii=False)
    environment.globals["namespace"] = _Namespace
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def find_variables(template: str) -> set[str]:
    """Finds the names of all values that a template reads and does not set itself."""
    environment = make_environment()
    tree = environment.parse(template)
    return meta.find_undeclared_variables(tree) - environment.globals.keys()


def _raise_exception(message: str) -> None:
    raise TemplateError(message)
