"""Bundles and heads that are uploaded to a hub, and run from there."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.stand_ins.hub_server import HubServer, run_hub

from medusa_trt.cli.main import main
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.hub import find_bundle


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    monkeypatch.setenv("HF_TOKEN", "hf_token")
    with run_hub(monkeypatch, str(tmp_path / "cache")) as server:
        yield server


def test_a_bundle_goes_to_the_hub_and_comes_back(
    hub: HubServer, tiny_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(tiny_bundle.path, tmp_path / "tiny")
    (folder / "notes.txt").write_text("of no use to others")
    assert main(["push", str(folder), "owner/tiny"]) == 2
    assert "medusa-trt card" in capsys.readouterr().err
    assert main(["card", str(folder), "--license", "apache-2.0"]) == 0
    assert main(["push", str(folder), "owner/tiny", "--private"]) == 0
    assert hub.url in capsys.readouterr().out
    assert hub.private == {"owner/tiny"}
    assert set(hub.repositories["owner/tiny"]) == {
        *(path.name for path in folder.iterdir() if path.name != "notes.txt")
    }
    there = find_bundle("owner/tiny")
    assert Bundle.open(there).manifest == tiny_bundle.manifest
    assert not any(path.is_symlink() for path in there.iterdir())
    assert main(["generate", "owner/tiny@main", "a", "--max-new-tokens", "3"]) == 0
    from_hub = capsys.readouterr().out
    assert main(["generate", str(folder), "a", "--max-new-tokens", "3"]) == 0
    assert capsys.readouterr().out == from_hub


def test_a_bundle_that_is_here_is_found_without_the_hub(
    hub: HubServer, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    files = {path.name: path.read_bytes() for path in tiny_bundle.path.iterdir()}
    hub.repositories["owner/tiny"] = files
    there = find_bundle("owner/tiny")
    hub.repositories.clear()
    hub.shutdown()
    hub.server_close()
    assert find_bundle("owner/tiny") == there
    Bundle.open(there)


def test_heads_go_to_the_hub(hub: HubServer, tiny_heads: Path, tmp_path: Path) -> None:
    folder = tmp_path / "heads"
    folder.mkdir()
    shutil.copy(tiny_heads, folder)
    assert main(["card", str(folder), "--base-model", "owner/model"]) == 0
    assert 'base_model: "owner/model"' in (folder / "README.md").read_text()
    assert main(["push", str(folder), "owner/heads"]) == 0
    uploaded = hub.repositories["owner/heads"]
    assert uploaded == {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["generate", "owner/none", "a"], "'owner/none' is not a folder and cannot be downloaded"),
        (["generate", "owner/model", "a"], "no bundle: it has no manifest.json"),
        (["generate", "owner/model@a b", "a"], "write a commit, a branch or a tag"),
        (["push", "FOLDER", "tiny"], "write OWNER/NAME"),
        (["push", "FOLDER/manifest.json", "owner/tiny"], "no folder"),
    ],
)
def test_what_is_wrong_is_told(
    hub: HubServer,
    tiny_bundle: Bundle,
    words: list[str],
    told: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    hub.repositories["owner/model"] = {"config.json": b"{}"}
    assert main([word.replace("FOLDER", str(tiny_bundle.path)) for word in words]) == 2
    assert told in capsys.readouterr().err
