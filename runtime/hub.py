"""Bundles on the Hugging Face hub."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medusa_trt.errors import BundleError, MedusaError, describe_error, require_extra
from medusa_trt.runtime.manifest import manifest_from_json
from medusa_trt.runtime.tensors import MANIFEST_FILE

_REVISION = re.compile(r"[\w.-]+(/[\w.-]+)*")
"""A commit, a branch or a tag."""


def is_hub_id(name: str) -> bool:
    """Whether a name that is not a local path reads like `owner/name`."""
    is_relative = not name.startswith((".", "/", "~"))
    return name.count("/") == 1 and is_relative and all(name.split("/")) and not Path(name).exists()


@contextmanager
def name_hub_errors(what: str, error_class: type[MedusaError]) -> Iterator[None]:
    """Turns every error of the hub's client into one line that begins with `what`.

    The client raises its own errors, those of its HTTP library and the system's.
    """
    try:
        yield
    except MedusaError:
        raise
    except Exception as error:
        raise error_class(f"{what}: {describe_error(error)}") from error


def find_bundle(name: str) -> Path:
    """Finds a bundle; one of the hub is downloaded, as far as it is not here already.

    Args:
        name: a folder, or `owner/name` or `owner/name@revision` where there is no such folder. A
            revision is a commit, a branch or a tag.

    Returns:
        The folder; it may be missing or no bundle, which `Bundle.open` finds.

    Raises:
        BundleError: the hub cannot be reached, or has no such bundle.
    """
    repo_id, is_revision, revision = name.partition("@")
    if Path(name).exists() or not is_hub_id(repo_id):
        return Path(name)
    if is_revision and not _REVISION.fullmatch(revision):
        raise BundleError(
            f"{name!r} names the revision {revision!r}: write a commit, a branch or a tag"
        )
    return _download(repo_id, revision or None)


def _download(repo_id: str, revision: str | None) -> Path:
    with require_extra(f"{repo_id} is not a folder, and the hub", "hub", error_class=BundleError):
        from huggingface_hub import constants, hf_hub_download, snapshot_download
        from huggingface_hub.errors import RemoteEntryNotFoundError
    # The hub's own cache has links to files elsewhere, which ONNX Runtime refuses for weights.
    cache = Path(constants.HF_HOME) / "medusa-trt"
    folder = cache / "--".join([*repo_id.split("/"), *(revision or "main").split("/")])
    advice = f"make one with medusa-export --model {repo_id}"
    with name_hub_errors(
        f"{repo_id!r} is not a folder and cannot be downloaded from the hub", BundleError
    ):
        try:
            path = hf_hub_download(repo_id, MANIFEST_FILE, revision=revision, local_dir=folder)
        except RemoteEntryNotFoundError as error:
            raise BundleError(
                f"{repo_id} on the hub is no bundle: it has no {MANIFEST_FILE}; {advice}"
            ) from error
        manifest = manifest_from_json(Path(path).read_bytes(), f"{repo_id}/{MANIFEST_FILE}")
        names = [MANIFEST_FILE, *manifest.files]
        snapshot_download(repo_id, revision=revision, local_dir=folder, allow_patterns=names)
    return folder
