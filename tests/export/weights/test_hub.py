"""Files and heads that are downloaded from the hub."""

import fnmatch
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from safetensors.torch import save_file
from support.checkpoints.head_files import Tensors, write_heads
from support.tiny_models import head_tensors

from medusa_trt.errors import ExportError
from medusa_trt.export.heads.loading import holds_heads, load_heads
from medusa_trt.export.models.heads_choice import choose_heads
from medusa_trt.export.models.source import source_from_name
from medusa_trt.export.weights.hub import folder_from_hub


def content(**options: Any) -> Tensors:
    return head_tensors(**({"num_heads": 2, "num_layers": 1} | options))


class Hub:
    """A hub of local folders in place of `snapshot_download`, which records what is asked of it."""

    def __init__(self, repositories: dict[str, Path], cache: Path) -> None:
        self.repositories = repositories
        self.cache = cache
        self.files: set[str] = set()

    def __call__(self, repo_id: str, *, allow_patterns: list[str]) -> str:
        if repo_id not in self.repositories:
            raise huggingface_hub.errors.LocalEntryNotFoundError(f"cannot reach\n{repo_id}")
        folder = self.cache / repo_id
        folder.mkdir(parents=True, exist_ok=True)
        for file in self.repositories[repo_id].iterdir():
            if any(fnmatch.fnmatch(file.name, pattern) for pattern in allow_patterns):
                shutil.copy(file, folder)
                self.files.add(file.name)
        return str(folder)


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("vllm", {"config.json", "model.safetensors"}),
        ("fasterdecoding", {"config.json", "medusa_lm_head.pt"}),
        ("peft", {"adapter_config.json", "adapter_model.safetensors"}),
    ],
)
def test_heads_on_the_hub(
    name: str,
    files: set[str],
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = write_heads(name, tmp_path / "remote", content(), tiny_model)
    (folder / "README.md").write_text("not needed")
    hub = Hub({"owner/heads": folder}, tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    loaded = load_heads("owner/heads")
    assert (loaded.format, loaded.heads.num_heads, hub.files) == (name, 2, files)
    with pytest.raises(
        ExportError, match=r"'owner/nothing' is not a local path and cannot .* hub: cannot reach o"
    ):
        load_heads("owner/nothing")


def test_of_a_merged_checkpoint_on_the_hub_only_the_heads_are_downloaded(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_heads("modelopt", tmp_path / "remote", content(), tiny_model)
    named = tmp_path / "odd"
    named.mkdir()
    save_file(content(), named / "odd_name.safetensors")
    hub = Hub({"owner/merged": folder, "owner/odd": named}, tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    assert holds_heads("owner/merged") and load_heads("owner/merged").heads.num_heads == 2
    assert "model-00002-of-00002.safetensors" in hub.files
    assert "model-00001-of-00002.safetensors" not in hub.files
    assert load_heads("owner/odd").heads.num_heads == 2
    choice = choose_heads(source_from_name("owner/merged"), None)
    assert (choice.source.location, choice.warnings) == ("owner/merged", ())


def test_a_local_folder_wins_over_the_hub(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_heads("tgi-v1", tmp_path / "owner" / "heads", content(), tiny_model)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", Hub({}, tmp_path))
    assert load_heads("owner/heads").format == "tgi-v1"


def test_files_that_match_are_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "remote").mkdir()
    for name in ("a.json", "b.json", "c.bin"):
        (tmp_path / "remote" / name).write_text(name)
    hub = Hub({"owner/name": tmp_path / "remote"}, tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    folder = folder_from_hub("owner/name", ["*.json"])
    assert sorted(path.name for path in folder.iterdir()) == ["a.json", "b.json"]
