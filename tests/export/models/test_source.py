"""Where a model comes from, by what a user calls it."""

from pathlib import Path

from support.tiny_models import save_tiny_model

from medusa_trt.export.models.source import source_from_name


def test_a_saved_model_folder_is_named_after_itself(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "my-model")
    assert source_from_name(str(folder)).name == "my-model"
    assert source_from_name("owner/name").location == "owner/name"
