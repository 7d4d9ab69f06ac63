"""`medusa-trt inspect` as a user meets it."""

import json

import pytest
from support.terminal.command_line import refusal

from medusa_trt.cli.main import main
from medusa_trt.cli.verbs.inspect import VERBS
from medusa_trt.export.inspection import load_gpus
from medusa_trt.runtime import tensors as names
from medusa_trt.runtime.bundle import Bundle


def test_the_help_names_gpus() -> None:
    text = " ".join(VERBS["inspect"].make_parser("inspect").format_help().split())
    (shown,) = [part.split(" and others")[0] for part in text.split("on this GPU: ")[1:]]
    assert set(shown.split(", ")) <= load_gpus().keys()


def test_inspect_prints_json_that_agrees_with_the_bundle(
    tiny_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(tiny_bundle.path), "--json", "--gpu", "l4"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["manifest"]["model"]["num_layers"] == 2
    assert len(shown["tree"]) == tiny_bundle.tree.num_nodes - 1
    estimates = shown["estimates"]
    weights = (tiny_bundle.path / names.WEIGHTS_FILE).stat().st_size
    assert estimates["weights_bytes"] == weights
    assert estimates["plain_tokens_per_s"] > estimates["medusa_steps_per_s"] > 0
    assert estimates["fits_memory"] == 1


def test_inspect_prints_tables_and_the_tree(
    tiny_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(tiny_bundle.path), "--tensors"]) == 0
    shown = capsys.readouterr().out
    assert "past_key_values.1.value" in shown and "└── head 1 #10" in shown
    lines = shown.splitlines()[shown.splitlines().index("root") :]
    assert len(lines) == tiny_bundle.tree.num_nodes
    assert lines[1] == "├── head 1 #1"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["BUNDLE", "--gpu", "abacus"], "unknown GPU 'abacus': choose from b200"),
        (["nothing-here"], "is not a bundle"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str],
    message: str,
    tiny_bundle: Bundle,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"BUNDLE": str(tiny_bundle.path)}
    words = [places.get(argument, argument) for argument in arguments]
    assert message in refusal(capsys, "inspect", *words)
