"""Uploads bundles and heads to the Hugging Face hub."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from medusa_trt.errors import MedusaError, require_extra
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.hub import name_hub_errors
from medusa_trt.runtime.tensors import MANIFEST_FILE
from medusa_trt.sharing.card import CARD_FILE


@dataclass(frozen=True, slots=True, kw_only=True)
class PushOptions:
    """Upload a bundle or heads to the Hugging Face hub; log in before, with hf auth login.

    Attributes:
        source: a bundle's folder, or a folder of heads.
        repository: the repository, made if there is none.
        private: make a new repository private.
        message: the commit's message (default: what was uploaded).
    """

    source: Annotated[Path, "SOURCE"]
    repository: Annotated[str, "OWNER/NAME"]
    private: bool = False
    message: str | None = None


def push(options: PushOptions, report: Callable[[str], None] = print) -> str:
    """Uploads a folder, and returns the address of the commit.

    A bundle's files are compared with its manifest before; of its folder, only these files and the
    card are uploaded.

    Raises:
        MedusaError: the folder is neither a bundle nor heads, has no card, or the hub refuses.
    """
    source, repository = options.source, options.repository
    if repository.count("/") != 1 or not all(repository.split("/")):
        raise MedusaError(f"the repository is {repository!r}: write OWNER/NAME")
    names = list_files(source)
    if not (source / CARD_FILE).is_file():
        raise MedusaError(f"{source} has no model card: write one with medusa-trt card {source}")
    with require_extra("uploading", "hub"):
        from huggingface_hub import HfApi
    api = HfApi()
    report(f"uploading {len(names) + 1} files to {repository}")
    with name_hub_errors(f"cannot upload {source} to {repository}", MedusaError):
        api.create_repo(repository, private=options.private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=source,
            allow_patterns=[*names, CARD_FILE],
            commit_message=options.message or f"Upload {source.resolve().name}",
        )
    return str(commit.commit_url)


def list_files(source: Path) -> list[str]:
    """Lists the names of the files that are uploaded, without the card.

    Raises:
        MedusaError: the folder is neither a bundle nor heads.
    """
    if (source / MANIFEST_FILE).exists():
        return [MANIFEST_FILE, *Bundle.open(source).manifest.files]
    if not source.is_dir():
        raise MedusaError(f"{source} is no folder: give a bundle's folder, or a folder of heads")
    with require_extra("reading heads", "export"):
        from medusa_trt.export.heads.loading import load_heads
    load_heads(source)
    names = (path.name for path in source.iterdir() if path.is_file())
    return sorted(name for name in names if name != CARD_FILE)
