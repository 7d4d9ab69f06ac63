"""Every pair of formats: read by ours, written by ours, against files written by other code."""

import warnings
from pathlib import Path

import pytest
import torch
from support.checkpoints.head_files import WRITERS, Tensors, all_tensors, config_of
from support.tiny_models import HIDDEN_SIZE, VOCAB_SIZE, head_tensors

from medusa_trt.export.head_conversion.options import ConvertOptions
from medusa_trt.export.head_conversion.saving import convert_heads
from medusa_trt.export.heads.formats import FORMATS
from medusa_trt.export.heads.loading import load_heads

OWN = [
    "medusa-trt",
    "fasterdecoding",
    "fasterdecoding-merged",
    "peft",
    "tgi-v1",
    "vllm",
    "tensorrt-llm",
    "modelopt",
    "mlc",
    "rtp-llm",
]
SHARED = ["medusa-trt", "shared", "tgi-v2"]
TRUNCATED = ["medusa-trt", "vllm"]

MAP = torch.tensor([3, 299, 0, 17, 5, 21, 8, 30, 11, 2, 26, 14])

FOUND_AS = {"tgi-v2": "shared"}
"""Formats whose files are those of another one."""


def content(
    *,
    num_layers: int = 1,
    own: bool = True,
    token_map: bool = False,
    projection: bool = False,
    root_map: bool = False,
) -> Tensors:
    vocab_size = (len(MAP) if token_map else VOCAB_SIZE) if own else None
    found = head_tensors(num_heads=2, num_layers=num_layers, vocab_size=vocab_size)
    if projection:
        for head in range(2):
            found[f"{head}.projection.weight"] = torch.eye(HIDDEN_SIZE) / (2 + head)
            found[f"{head}.projection.bias"] = torch.ones(HIDDEN_SIZE) * head
    if root_map:
        for head in range(2):
            found[f"{head}.root_map.weight"] = torch.eye(HIDDEN_SIZE, 2 * HIDDEN_SIZE) / (3 + head)
    return found | ({"token_map": MAP} if token_map else {})


def written(name: str, folder: Path, tensors: Tensors, model: Path) -> Path:
    folder.mkdir(parents=True)
    WRITERS[name](folder, tensors, model)
    return folder


def convert(source: Path, to: str, output: Path, model: Path | None, **options: object) -> Path:
    values: dict[str, object] = {
        "source": str(source),
        "to": to,
        "output": output,
        "model": None if model is None else str(model),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        convert_heads(ConvertOptions(**(values | options)), lambda _: None)  # type: ignore[arg-type]
    return output


PAIRS = [
    *((kind, source, to) for kind in ("own",) for source in OWN for to in OWN),
    *((kind, source, to) for kind in ("two layers",) for source in OWN for to in OWN[:1]),
    *((kind, source, to) for kind in ("two layers",) for source in OWN[:1] for to in OWN),
    *(("shared", source, to) for source in SHARED for to in SHARED),
    *(("truncated", source, to) for source in TRUNCATED for to in ["medusa-trt"]),
]
CONTENTS = {
    "own": content(),
    "two layers": content(num_layers=2),
    "shared": content(own=False),
    "truncated": content(token_map=True),
}


@pytest.mark.parametrize(("kind", "source", "to"), PAIRS)
def test_a_conversion_writes_what_the_tool_itself_would(
    kind: str, source: str, to: str, tiny_model: Path, tmp_path: Path
) -> None:
    tensors = CONTENTS[kind]
    read = written(source, tmp_path / "source", tensors, tiny_model)
    loaded = load_heads(read)
    assert loaded.format in (source, FOUND_AS.get(source), *(["tgi-v1", "shared"] * plain(source)))
    assert (loaded.warnings, loaded.dtype) == ((), torch.float32)
    expected = written(to, tmp_path / "expected", tensors, tiny_model)
    output = convert(read, to, tmp_path / "output", tiny_model)
    found, wanted = all_tensors(output), all_tensors(expected)
    assert found.keys() == wanted.keys()
    for key in wanted:
        assert found[key].dtype == wanted[key].dtype and torch.equal(found[key], wanted[key]), key
    config, stated = config_of(output), config_of(expected)
    for key, value in stated.items():
        if key == "base_model_name_or_path":
            assert config[key] == str(tiny_model)
        elif key not in ("transformers_version", "dtype"):
            assert config.get(key) == value, key
    assert not any(path.name.startswith(".") for path in tmp_path.iterdir())
    again = load_heads(output)
    assert (again.warnings, again.facts.num_layers) == ((), loaded.facts.num_layers)


def plain(source: str) -> bool:
    """Whether this project's format holds nothing here that public ones do not."""
    return source == "medusa-trt"


def test_every_format_is_in_the_tables() -> None:
    assert {*OWN, *SHARED} == FORMATS.keys() == WRITERS.keys()
    assert all(row.name == name and row.description for name, row in FORMATS.items())
