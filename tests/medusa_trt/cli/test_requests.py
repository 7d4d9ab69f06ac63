"""Requests as Python sees them: what they refuse, and the prompts that they make."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from medusa_trt.cli.requests import Request, requests_from_file
from medusa_trt.errors import PromptError
from medusa_trt.runtime.options import GenerationOptions, SamplingOptions
from medusa_trt.runtime.session import MedusaSession
from medusa_trt.runtime.text.prompts import ChatPrompt

USER = {"role": "user", "content": "hello"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "there must be a prompt or messages"),
        ({"prompt": "a", "messages": (USER,)}, "and not both"),
        ({"prompt": "a", "raw": True, "system": "b"}, "a raw prompt has no messages"),
        ({"messages": (USER,), "system": "b"}, "messages hold their own system message"),
        ({"prompt": "a", "schema": {}, "regex": "b"}, "schema and regex exclude each other"),
        ({"prompt": "a", "n": 0}, "n is 0"),
        ({"prompt": 3}, "prompt is 3"),
    ],
)
def test_contradictions_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        Request(**values)


def test_a_prompt_is_a_message_unless_it_is_raw(session: MedusaSession) -> None:
    request = Request(prompt="hello", system="be brief")
    assert request.make_prompt(session) == ChatPrompt(
        messages=[{"role": "system", "content": "be brief"}, USER]
    )
    assert Request(prompt="hello", raw=True).make_prompt(session) == "hello"


def test_a_line_changes_what_it_names_and_keeps_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "batch.jsonl"
    path.write_text('\n{"prompt": "a", "temperature": 0.5, "stop": "x", "tree": "chain-2"}\n')
    options = GenerationOptions(max_new_tokens=7, sampling=SamplingOptions(top_k=3))
    defaults = Request(prompt="", regex="a+", options=options)
    (request,) = requests_from_file(path, defaults)
    assert (request.prompt, request.regex, request.line) == ("a", "a+", 2)
    assert request.options.max_new_tokens == 7 and request.options.stop == ("x",)
    assert request.options.sampling == replace(options.sampling, temperature=0.5)
    assert request.options.tree is not None and request.options.tree.name == "chain-2"
    assert request.make_options().grammar is not None
    path.write_text('{"prompt": "a", "temprature": 1}')
    with pytest.raises(PromptError, match=r"line 1 of .*did you mean temperature\?"):
        requests_from_file(path, defaults)
