"""Every verb on a bundle without heads: it works, or says that it needs heads."""

import shutil
from pathlib import Path

import pytest
from support.terminal.command_line import refusal

from medusa_trt.cli.main import main
from medusa_trt.runtime.bundle import Bundle

QUICK = ("--threads", "1", "--max-length", "448")


@pytest.fixture
def plain(headless_bundle: Bundle, tmp_path: Path) -> str:
    """A copy of the bundle that one test may change."""
    return str(shutil.copytree(headless_bundle.path, tmp_path / "plain"))


@pytest.mark.parametrize("verb", ["heads", "tree", "threshold"])
def test_what_calibrates_heads_says_that_it_needs_them(
    plain: str, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = refusal(capsys, "calibrate", verb, plain, *QUICK)
    assert f"calibrate {verb} needs Medusa heads, and this bundle of tiny-llama has none" in text
    assert "export the model with --heads" in text


def test_step_times_are_those_of_chains(plain: str, capsys: pytest.CaptureFixture[str]) -> None:
    samples = ("--sizes", "1,4", "--contexts", "16", "--rounds", "1")
    assert main(["calibrate", "latency", plain, *QUICK, *samples]) == 0
    assert "ms after 16 tokens" in capsys.readouterr().out


def test_bench_leaves_the_heads_alone_out(
    plain: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "p.txt"
    prompts.write_text("hello hello hello\n")
    common = ["bench", plain, "--prompts", str(prompts), "--max-new-tokens", "6", "--threads", "1"]
    assert main(common) == 0
    out = capsys.readouterr().out
    assert "0 heads, " in out and "greedy Medusa" in out and "heads alone" not in out
    text = refusal(capsys, *common, "--modes", "heads")
    assert "bench --modes heads needs Medusa heads" in text


def test_inspect_and_generate(plain: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", plain]) == 0
    out = capsys.readouterr().out
    assert "none: drafts come from prompt lookup alone" in out and "copied token 3" in out
    assert main(["inspect", plain, "--json", "--gpu", "l4"]) == 0
    capsys.readouterr()
    assert main(["generate", plain, "hello", "--max-new-tokens", "4"]) == 0
    capsys.readouterr()
    tree = ["generate", plain, "hello", "--tree", "mc_sim_7b_63"]
    assert "branches, and there are no heads" in refusal(capsys, *tree)


def test_training_data_and_deployment_begin_from_such_a_bundle(
    plain: str, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "p.txt"
    prompts.write_text("hello\nworld\n")
    words = ["--prompts", str(prompts), "--max-new-tokens", "4", "--output", str(tmp_path / "data")]
    assert main(["train", "data", str(tiny_model), "--bundle", plain, *words]) == 0
    assert list((tmp_path / "data").glob("*.safetensors"))
    output = ["--output", str(tmp_path / "out")]
    assert main(["deploy", plain, "--kind", "container", *output]) == 0
