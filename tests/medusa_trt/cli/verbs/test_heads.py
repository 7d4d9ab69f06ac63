"""`medusa-trt heads inspect` and `medusa-trt heads convert`, as a user runs them."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.checkpoints.head_files import WRITERS, all_tensors, config_of, vllm
from support.tiny_models import HIDDEN_SIZE, VOCAB_SIZE, head_tensors

from medusa_trt.cli.main import main
from medusa_trt.export.heads.formats import FORMATS

SHIPPED = Path(__file__).parents[4] / "export/models/shipped" / "smollm2_135m_heads.safetensors"
MAP = torch.tensor([3, 299, 0, 17, 5, 21, 8, 30, 11, 2, 26, 14])


@pytest.fixture
def heads(tmp_path: Path) -> Path:
    """Two heads for the tiny model as a single file."""
    path = tmp_path / "heads.safetensors"
    save_file(head_tensors(num_heads=2, num_layers=1), path)
    return path


def test_inspect_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["heads", "inspect", str(SHIPPED)]) == 0
    lines = capsys.readouterr().out.splitlines()
    shown = dict(re.split(r"  +", line.rstrip(), maxsplit=1) for line in lines)
    assert shown["format"].startswith("medusa-trt (")
    assert (shown["heads"], shown["layers"]) == ("3", "1 a head, with biases")
    assert (shown["projection"], shown["hidden size"]) == ("no", "576")
    assert shown["reads the root token"] == "yes"
    assert shown["unembedding"] == "the backbone's, 8,192 tokens"
    assert (shown["token map"], shown["type"]) == ("8,192 tokens", "float16")
    # Maps of 1,152 and of 576 inputs for each head; the map of tokens has no parameters.
    assert shown["parameters"] == f"{3 * (1152 * 576 + 576 * 576 + 2 * 576):,}"
    assert all("[" not in line for line in lines)


def test_inspect_prints_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = head_tensors(num_heads=2, num_layers=1, vocab_size=len(MAP)) | {"token_map": MAP}
    vllm(tmp_path, tensors, tmp_path, vocab_size=VOCAB_SIZE)
    config = config_of(tmp_path) | {"num_heads": 4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert main(["heads", "inspect", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (warning,) = found.pop("warnings")
    assert "num_heads 4 where the tensors have 2" in warning
    assert found == {
        "path": str(tmp_path / "model.safetensors"),
        "format": "vllm",
        "num_heads": 2,
        "num_layers": 1,
        "hidden_size": HIDDEN_SIZE,
        "vocab_size": VOCAB_SIZE,
        "draft_vocab_size": len(MAP),
        "has_biases": True,
        "has_projection": False,
        "has_root_map": False,
        "has_token_map": True,
        "unembedding": "own",
        "base_model": None,
        "dtype": "float32",
        "num_parameters": 2 * (HIDDEN_SIZE * (HIDDEN_SIZE + 1) + len(MAP) * HIDDEN_SIZE),
        "backbone": None,
        "adapter": None,
    }


def test_inspect_shows_warnings_and_the_backbone(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = head_tensors(num_heads=2, num_layers=1)
    WRITERS["fasterdecoding-merged"](tmp_path, tensors, tiny_model)
    config = config_of(tmp_path) | {"medusa_num_heads": 5}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert main(["heads", "inspect", str(tmp_path)]) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "backbone beside the heads, 21 tensors" in output
    assert "medusa_num_heads 5 where the tensors have 2" in output
    assert "unembedding one for each head, 300 tokens" in output


def test_convert_writes_a_folder(
    heads: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["heads", "convert", str(heads), "--output", str(tmp_path / "out")]
    assert main([*command, "--to", "vllm", "--dtype", "bfloat16"]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "converted 2 heads from tgi-v1 to vllm" in captured.err.splitlines()[-1]
    found = all_tensors(tmp_path / "out")
    assert found["blocks.0.layers.0.weight"].dtype == torch.bfloat16
    assert main([*command, "--to", "mlc"]) == 2
    assert "error: " in capsys.readouterr().err
    assert main([*command, "--to", "mlc", "--overwrite"]) == 0
    assert config_of(tmp_path / "out")["medusa_num_heads"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "nowhere"], "no heads at nowhere"),
        (["inspect", "."], "several files"),
        (["inspect", "broken.pt"], "cannot read broken.pt"),
        (["convert", "heads.safetensors", "--to", "v3", "--output", "o"], "unknown head format"),
        (["convert", "heads.safetensors", "--to", "tgi-v1", "--output", "o"], "give --model"),
        (
            ["convert", "heads.safetensors", "--to", "vllm", "--output", "no/o"],
            "cannot write no/o",
        ),
        (
            ["convert", "heads.safetensors", "--to", "tgi-v1", "--output", "o", "--model", "gpt9"],
            "unknown model 'gpt9'",
        ),
    ],
)
def test_errors_are_one_line(
    arguments: list[str],
    message: str,
    heads: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(heads.parent)
    Path("broken.pt").write_bytes(b"PK\x03\x04 no archive")
    assert main(["heads", *arguments]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ") and message in last
    assert sorted(path.name for path in Path().iterdir()) == ["broken.pt", "heads.safetensors"]


def test_help_lists_every_format_and_needs_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from medusa_trt.cli.main import main\n"
        "main(['heads', 'convert', '-h'])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    page = " ".join(found.stdout.split())
    for row in FORMATS.values():
        assert f"{row.name} {row.description}" in page


def test_without_torch_the_error_names_the_extra(heads: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from medusa_trt.cli.main import main\n"
        f"sys.exit(main(['heads', 'inspect', {str(heads)!r}]))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 2
    assert found.stderr == "error: reading heads needs torch: pip install 'medusa-trt[export]'\n"
