"""The examples run as they are, on a tiny bundle, and do what they say."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from support.servers.live_server import running_server

from medusa_trt import GenerationOptions, load_tree
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.session import MedusaSession

EXAMPLES = Path(__file__).parents[2] / "examples"
TESTED_HERE = {"chat", "batch", "structured_output", "decode_loop", "langchain_client"}
TESTED_ELSEWHERE = {"save_demo_model"}  # By the tutorial, tests/docs/test_tutorial.py.


def load_example(name: str) -> ModuleType:
    """Imports an example from its file."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_is_tested() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == TESTED_HERE | TESTED_ELSEWHERE


def test_chat_sees_the_earlier_turns(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    example, lines, seen = load_example("chat"), iter(["hello", "again", ""]), []
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    monkeypatch.setattr(example, "OPTIONS", GenerationOptions(max_new_tokens=6))
    stream: Callable[..., Any] = MedusaSession.stream

    def note(session: MedusaSession, prompt: Any, options: Any) -> Any:
        seen.append([message["content"] for message in prompt])
        return stream(session, prompt, options)

    monkeypatch.setattr(MedusaSession, "stream", note)
    example.main(str(tiny_bundle.path))
    first, second = seen
    assert first == ["hello"] and second[0] == "hello" and second[2] == "again"
    assert second[1] in capsys.readouterr().out and second[1]


def test_batch_answers_every_question(
    tiny_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    example = load_example("batch")
    example.main(str(tiny_bundle.path))
    printed = capsys.readouterr().out
    assert all(question in printed for question in example.QUESTIONS)
    assert printed.count(" per step\n") == len(example.QUESTIONS)


def test_structured_output_is_an_object(tiny_bundle: Bundle) -> None:
    pytest.importorskip("llguidance")
    offer = load_example("structured_output").main(str(tiny_bundle.path))
    assert offer.condition in {"new", "used", "broken"} and 0 <= offer.price <= 9999


@pytest.mark.parametrize("prompt", ["a", "The sea is " * 30])
def test_the_decode_loop_gives_the_tokens_of_a_session(session: MedusaSession, prompt: str) -> None:
    prompt_ids = session.encode(prompt)
    options = GenerationOptions(max_new_tokens=40, tree=load_tree("plain"), lookup_ngram=0)
    expected = session.generate(prompt, options).token_ids
    assert load_example("decode_loop").decode(session, prompt_ids, len(expected)) == expected


def test_langchain_streams_from_the_server(tiny_bundle: Bundle) -> None:
    pytest.importorskip("langchain_openai")
    with (
        MedusaSession(tiny_bundle, num_threads=1) as session,
        running_server(session, max_sequences=1) as live,
    ):
        text = load_example("langchain_client").main(f"{live.url}/v1", live.service.model_name)
    assert text


def test_the_notebook_runs(tiny_bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    notebook = json.loads((EXAMPLES / "acceptance.ipynb").read_text("utf-8"))
    names: dict[str, object] = {}
    cells = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
    assert "build/smollm2-135m" in cells[0]
    for cell in cells:
        exec(cell.replace("../build/smollm2-135m", str(tiny_bundle.path)), names)
    assert "tokens per step" in capsys.readouterr().out
