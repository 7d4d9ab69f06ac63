"""Names of bundles on the hub; tests/sharing/test_upload.py downloads some."""

from pathlib import Path

import pytest

from medusa_trt.runtime.hub import find_bundle, is_hub_id


def test_a_name_is_a_hub_id_if_it_is_no_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_hub_id("owner/name") and is_hub_id("owner/name.gguf")
    for path in ("name", "./name", "~/name", "/owner/name", "../name", "a/b/c", "owner/", "/name"):
        assert not is_hub_id(path)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert not is_hub_id("owner/name")


def test_a_folder_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "name@2").mkdir(parents=True)
    for name in ("owner/name@2", "missing", "a/b/c", "./owner/none@main"):
        assert find_bundle(name) == Path(name)
