"""`medusa-trt train` as a user meets it."""

import json
import shutil
from pathlib import Path

import pytest
from support.tiny_models import HIDDEN_SIZE, VOCAB_SIZE, save_tiny_heads
from transformers import AutoModelForCausalLM

from medusa_trt.cli.main import main
from medusa_trt.export.heads.loading import heads_from_path
from medusa_trt.export.models.base_model import BaseModel
from medusa_trt.training.accuracy import NUM_CANDIDATES
from medusa_trt.training.data.distillation import generate_data
from medusa_trt.training.options import DataOptions
from medusa_trt.tree_configs import load_tree


def test_the_command_line_makes_data_and_heads_and_a_joint_model(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(f"Question {index}" for index in range(8)))
    data, heads, joint = (str(tmp_path / name) for name in ("data", "heads", "joint"))
    make = ["train", "data", str(tiny_model), "--output", data, "--prompts", str(prompts)]
    make += ["--batch-size", "4", "--max-new-tokens", "12", "--temperatures", "1"]
    assert main(make) == 0
    assert "data: 100%" in capsys.readouterr().err
    train = ["train", "heads", str(tiny_model), "--data", data, "--output", heads]
    train += ["--max-steps", "4", "--batch-rows", "16", "--num-checkpoints", "2"]
    assert main([*train, "--draft-vocab-size", "64"]) == 0
    out, err = capsys.readouterr()
    assert "tokens per step" in out and "first maps" in err and "4/4 [00:" in err
    assert "after 4 of 4 updates: loss" in err and "tokens per step on held-out replies" in err
    assert "{" not in out + err, "transformers' own log shows dictionaries"
    loaded = heads_from_path(tmp_path / "heads")
    loaded.check_fits(HIDDEN_SIZE, VOCAB_SIZE)
    assert loaded.draft_vocab_size(VOCAB_SIZE) == 64
    names = {path.name for path in (tmp_path / "heads").iterdir()}
    assert {"README.md", "curves.png", "log.json", "config.json"} <= names
    tree = load_tree(str(tmp_path / "heads" / "medusa_tree.json"))
    tree.check(loaded.num_heads, NUM_CANDIDATES)
    assert 2 <= tree.num_nodes <= 8
    card = (tmp_path / "heads" / "README.md").read_text()
    assert "seed: 0" in card and "| 3 |" in card
    assert "on 64 tokens" in card  # 4 steps of 16 rows
    assert main([*train, "--draft-vocab-size", "64"]) == 0  # nothing left to do
    assert main([*train, "--draft-vocab-size", "65"]) == 2
    assert "other data or options" in capsys.readouterr().err
    measure = ["train", "measure", str(tiny_model), heads, "--prompts", str(prompts)]
    capsys.readouterr()
    assert main([*measure, "--tree", "chain-2"]) == 0
    assert "tokens per step with 3 nodes" in capsys.readouterr().out
    assert main([*measure, "--tree", "chain-4"]) == 2
    both = ["train", "joint", str(tiny_model), "--data", data, "--output", joint, "--heads", heads]
    assert main([*both, "--max-steps", "2", "--batch-size", "2", "--lora-rank", "2"]) == 0
    assert AutoModelForCausalLM.from_pretrained(joint).config.medusa_num_heads == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["heads", "MODEL", "--data", "NOTHING", "--output", "OUT"], "holds no training data"),
        (["data", "unknown-model", "--output", "OUT"], "unknown model"),
        (["data", "MODEL", "--output", "/proc/data"], "cannot write /proc/data"),
        (["data", "MODEL", "--output", "OUT", "--batch-size", "0"], "--batch-size is 0"),
        (["data", "MODEL", "--output", "OUT", "--temperatures", "0,-1"], "temperatures are"),
        (
            ["data", "MODEL", "--output", "OUT", "--prompts", "NOTHING"],
            "NOTHING: No such file",
        ),
        (
            ["heads", "MODEL", "--data", "X", "--output", "OUT", "--num-heads", "0"],
            "--num-heads is 0",
        ),
        (
            ["joint", "MODEL", "--data", "X", "--output", "O", "--lora-rank", "0"],
            "--lora-rank is 0",
        ),
        (
            ["joint", "MODEL", "--data", "X", "--output", "O", "--quantization", "8bit"],
            "joint training changes the backbone's weights, which 8bit cannot hold",
        ),
    ],
)
def test_wrong_arguments_end_in_one_line(
    arguments: list[str],
    message: str,
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"MODEL": str(tiny_model)}
    places |= {name: str(tmp_path / name) for name in ("NOTHING", "OUT", "X", "O")}
    assert main(["train", *(places.get(word, word) for word in arguments)]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and message in error[0]


def test_a_command_that_was_refused_can_be_given_again_with_other_options(
    base: BaseModel, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A tiny model of another name is refused after the run was recorded."""
    data, other = tmp_path / "data", shutil.copytree(tiny_model, tmp_path / "other")
    list(generate_data(base, [("Hi",), ("Yes",)], data, DataOptions(max_new_tokens=8)))
    train = ["--data", str(data), "--output", str(tmp_path / "out"), "--held-out-fraction", "0.5"]
    assert main(["train", "heads", str(other), *train, "--max-steps", "2"]) == 2
    assert "was made by" in capsys.readouterr().err
    assert main(["train", "heads", str(tiny_model), *train, "--max-steps", "1"]) == 0
    assert main(["train", "heads", str(tiny_model), *train, "--max-steps", "2"]) == 2


@pytest.mark.parametrize("step", ["data", "heads", "measure"])
@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("model.gguf", "GGUF file, which cannot be loaded in 4bit"),
        ("adapter", "an adapter to merge, which cannot be loaded in 4bit"),
        ("packed", "the weights of packed are quantized already"),
    ],
)
def test_a_model_that_cannot_be_quantized_is_refused_in_one_line(
    step: str,
    model: str,
    message: str,
    base: BaseModel,
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    (tmp_path / "adapter").mkdir()
    named = json.dumps({"base_model_name_or_path": str(tiny_model)})
    (tmp_path / "adapter" / "adapter_config.json").write_text(named)
    packed = shutil.copytree(tiny_model, tmp_path / "packed")
    config = json.loads((packed / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (packed / "config.json").write_text(json.dumps(config))
    list(generate_data(base, [("Hi",)], tmp_path / "data", DataOptions(max_new_tokens=2)))
    others = {
        "data": ["--output", str(tmp_path / "new")],
        "heads": ["--data", str(tmp_path / "data"), "--output", str(tmp_path / "out")],
        "measure": [str(save_tiny_heads(tmp_path / "heads.safetensors"))],
    }
    command = ["train", step, str(tmp_path / model), *others[step], "--quantization", "4bit"]
    capsys.readouterr()
    assert main(command) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and message in error[0]


def test_an_interrupt_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("medusa_trt.training.backbone.load_backbone", interrupt)
    assert main(["train", "data", "model", "--output", str(tmp_path / "data")]) == 130
    assert capsys.readouterr().err == "interrupted: run the same command again to go on\n"
