"""`medusa-trt inspect`, `verify`, `models` and `doctor`, as a user runs them."""

import json
import re
from pathlib import Path

import pytest
from jinja2 import Template
from support.tiny_models import llama_config, save_tiny_model

from medusa_trt.cli.main import main
from medusa_trt.export.inspection import gpus, graph_facts, steps_per_s, tree_lines
from medusa_trt.export.models.aliases import aliases
from medusa_trt.runtime import bundle as names
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.engines.device.memory import compute_capability
from medusa_trt.tree_configs import load_tree
from medusa_trt.tree_configs.tree import MAX_NODES


def test_inspect_counts_what_a_step_reads(tiny_bundle: Bundle) -> None:
    config = llama_config()
    hidden, inner, vocab = config.hidden_size, config.intermediate_size, config.vocab_size
    per_layer = hidden * (hidden + 2 * hidden // 2 + hidden) + 3 * hidden * inner
    matrices = 4 * (config.num_hidden_layers * per_layer + vocab * hidden)
    norms = 4 * hidden * (2 * config.num_hidden_layers + 1)
    facts = graph_facts(tiny_bundle, "verify")
    # The norms are all ones, so some are stored once; and there are a few shapes.
    assert matrices + 4 * hidden <= facts.read_bytes <= matrices + norms + 200
    tables = 4 * vocab * hidden + 2 * 4 * (512 + MAX_NODES) * 8  # the embedding, cosines and sines
    assert facts.weight_bytes == facts.read_bytes + tables
    assert facts.operators["com.microsoft.GroupQueryAttention"] == 2
    assert tiny_bundle.cache_bytes(10) == 2 * 2 * 2 * 16 * 10 * 4
    assert steps_per_s(3_350_000_000, gpus()["h100"]) == pytest.approx(1000)


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
    assert "past_key_values.1.value" in shown and "└─ head 1 #10" in shown
    lines = tree_lines(tiny_bundle)
    assert len(lines) == tiny_bundle.tree.num_nodes
    assert lines[0] == "root" and lines[1] == "├─ head 1 #1"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "BUNDLE", "--gpu", "abacus"], "unknown GPU 'abacus': choose from b200"),
        (["inspect", "nothing-here"], "is not a bundle"),
        (["verify", "BUNDLE", "--against", "OTHER"], "has 2 layers, .* has 3: give the model"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str],
    message: str,
    tiny_bundle: Bundle,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"BUNDLE": str(tiny_bundle.path)}
    if "OTHER" in arguments:
        other = save_tiny_model(tmp_path / "other", llama_config(num_hidden_layers=3))
        places["OTHER"] = str(other)
    capsys.readouterr()
    assert main([places.get(argument, argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(message, error)


def test_verify_compares_with_the_model(
    tiny_bundle: Bundle, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(tiny_bundle.path), "--against", str(tiny_model)]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in shown] == ["text", "tree", "batch"]
    assert all("argmax equal at 100.0%" in line for line in shown)


def test_verify_refuses_another_model_of_the_same_shape(
    tiny_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = save_tiny_model(tmp_path / "other", seed=5)
    assert main(["verify", str(tiny_bundle.path), "--against", str(other)]) == 2
    assert "logits differ from the model's" in capsys.readouterr().err


def test_models_lists_every_alias(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--json"]) == 0
    assert json.loads(capsys.readouterr().out).keys() == aliases().keys()
    assert main(["models"]) == 0
    shown = capsys.readouterr().out
    for alias in aliases().values():  # none is cut
        assert (alias.repository or "") in shown and (alias.heads or "") in shown


@pytest.mark.parametrize("name", aliases())
def test_each_alias_names_what_exists(name: str) -> None:
    alias = aliases()[name]
    assert (alias.package is None) != (alias.repository is None)
    assert alias.repository is None or alias.repository.count("/") == 1
    if alias.tree is not None:
        assert load_tree(alias.tree).num_nodes > 1
    heads = alias.heads_source
    assert heads is None or isinstance(heads, str) or heads.is_file()


def test_vicunas_chat_template_is_fastchats() -> None:
    path = Path(__file__).parents[3] / "export/models/shipped" / "vicuna_chat_template.jinja"
    template = Template(path.read_text("utf-8"))
    turns = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi!"},
        {"role": "user", "content": "How?"},
    ]
    text = template.render(messages=turns, eos_token="</s>", add_generation_prompt=True)
    # FastChat joins "system USER: ... ASSISTANT: ...</s>USER: ... ASSISTANT:".
    assert text.endswith(" USER: Hello ASSISTANT: Hi!</s>USER: How? ASSISTANT:")
    assert text.startswith("A chat between a curious user and an artificial intelligence")
    system = [{"role": "system", "content": "Be brief."}, turns[0]]
    assert template.render(messages=system, eos_token="</s>") == "Be brief. USER: Hello "


def test_zephyrs_chat_template_is_its_model_cards() -> None:
    path = Path(__file__).parents[3] / "export/models/shipped" / "zephyr_chat_template.jinja"
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    text = Template(path.read_text("utf-8")).render(
        messages=turns, eos_token="</s>", add_generation_prompt=True
    )
    assert text == "<|system|>\nBe brief.</s>\n<|user|>\nHello</s>\n<|assistant|>\n"


def test_doctor_says_what_runs_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    states = {line[:33].rstrip(): line[34:] for line in shown.split("\n\n")[1].splitlines()}
    assert states["export models"] == states["train heads, merge adapters"] == "yes"
    if compute_capability() is None:
        gpu = states["run TensorRT-RTX engines"]
        assert gpu == "no: CUDA finds no NVIDIA GPU here" or gpu.startswith("no: pip install")
    assert all(word in shown for word in ("Python", "memory", "operators"))
