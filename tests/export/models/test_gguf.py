"""GGUF files by any name, in parts and damaged."""

import shutil
from pathlib import Path

import pytest
import torch
from gguf import GGUFReader
from support.checkpoints.gguf_files import write_gguf
from support.tiny_models import llama_config, random_model, save_tiny_model

from medusa_trt.errors import ExportError
from medusa_trt.export.models.base_model import load_model
from medusa_trt.export.models.gguf import read_gguf
from medusa_trt.export.models.source import source_from_name


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path, random_model(llama_config()), "Q4_0")
    return path


def test_fields_and_tensors_are_those_that_ggufs_own_reader_finds(whole: Path) -> None:
    model, reader = read_gguf(whole, with_texts=True), GGUFReader(whole)
    expected = {
        name: field.contents() for name, field in reader.fields.items() if name[:5] != "GGUF."
    }
    assert model.fields == expected
    found = [(t.name, t.kind, t.shape, t.offset, t.num_bytes) for t in model.tensors]
    assert found == [
        (t.name, t.tensor_type, tuple(reversed(t.shape.tolist())), t.data_offset, t.n_bytes)
        for t in reader.tensors
    ]


@pytest.mark.parametrize("name", ["sha256-3f2a", "Tiny.Q4_0.GGUF", "tiny", "sub/tiny.gguf"])
def test_the_begin_of_a_file_decides_and_not_its_name(
    name: str, whole: Path, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    shutil.copy(whole, path)
    source = source_from_name(str(path))
    assert source.gguf == path
    assert load_model(source, torch.float32).config.vocab_size == 300


def test_a_folder_with_one_model_is_taken(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "mmproj-vision.gguf").write_bytes(b"GGUF")
    with pytest.raises(ExportError, match=r"has neither a config.json nor a GGUF file"):
        source_from_name(str(tmp_path))
    (tmp_path / "notes.txt").write_text("no model")
    shutil.copy(whole, tmp_path / "sha256-0a1b")
    assert source_from_name(str(tmp_path)).gguf == tmp_path / "sha256-0a1b"
    (tmp_path / "sha256-0a1b").rename(tmp_path / "a.gguf")
    assert source_from_name(str(tmp_path)).gguf == tmp_path / "a.gguf"
    shutil.copy(whole, tmp_path / "b.gguf")
    with pytest.raises(ExportError, match=r"holds 2 models: give one of its files, a.gguf, b.gguf"):
        source_from_name(str(tmp_path))


def test_parts_make_one_model(whole: Path, tmp_path: Path) -> None:
    write_gguf(tmp_path / "t.gguf", random_model(llama_config()), "Q4_0", tensors_in_part=8)
    parts = sorted(tmp_path.iterdir())
    assert [part.name for part in parts] == [f"t-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    expected = load_model(source_from_name(str(whole)), torch.float32).state_dict()
    for name in (parts[0], parts[2], tmp_path):
        source = source_from_name(str(name))
        assert (source.name, source.gguf) == ("t", parts[0])
        state = load_model(source, torch.float32).state_dict()
        assert all(torch.equal(state[key], expected[key]) for key in expected)
    parts[1].unlink()
    with pytest.raises(ExportError, match=r"cannot read .*t-00002-of-00003.gguf: No such file"):
        source_from_name(str(parts[0]))
    alone = tmp_path / "alone.gguf"
    parts[0].rename(alone)
    with pytest.raises(ExportError, match=r"alone.gguf is one of 3 parts: give them the names"):
        read_gguf(alone)


def test_other_files_are_refused_by_what_they_are(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model")
    with pytest.raises(ExportError, match=r"model.safetensors is not a GGUF file"):
        source_from_name(str(folder / "model.safetensors"))
    with pytest.raises(ExportError, match=r"cannot read .*missing.gguf: No such file"):
        source_from_name(str(tmp_path / "missing.gguf"))


def test_damaged_files_are_refused(whole: Path, tmp_path: Path) -> None:
    content = whole.read_bytes()
    path = tmp_path / "damaged.gguf"
    for size in (4, 8, 20, 30, 200, 5000, 7000, len(content) - 4):
        path.write_bytes(content[:size])
        with pytest.raises(ExportError, match=r"damaged.gguf is a damaged GGUF file: "):
            read_gguf(path)
    path.write_bytes(content[:4] + b"\x01" + content[5:])
    with pytest.raises(ExportError, match=r"version 1, known are \(2, 3\)"):
        read_gguf(path)
