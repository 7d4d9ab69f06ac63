"""Local copies of files on the Hugging Face hub."""

from collections.abc import Sequence
from pathlib import Path

from medusa_trt.errors import ExportError
from medusa_trt.runtime.hub import name_hub_errors


def folder_from_hub(repo_id: str, patterns: Sequence[str]) -> Path:
    """Downloads the files of a repository that match; the cache is used where the hub is not.

    Args:
        repo_id: `owner/name`.
        patterns: of file names, `*.json` for example.

    Raises:
        ExportError: the hub cannot be reached, or has no such repository.
    """
    from huggingface_hub import snapshot_download

    what = f"{repo_id!r} is not a local path and cannot be downloaded from the hub"
    with name_hub_errors(what, ExportError):
        return Path(snapshot_download(repo_id, allow_patterns=list(patterns)))


def find_file(location: str, name: str) -> Path | None:
    """Finds a file of a folder or hub repository, downloaded if need be; None if there is none."""
    from transformers.utils.hub import cached_file

    file = cached_file(
        location,
        name,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_gated_repo=True,
        _raise_exceptions_for_connection_errors=True,
    )
    return None if file is None else Path(file)
