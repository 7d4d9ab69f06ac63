"""Sources of a backbone: an alias, a folder, a hub id, an adapter or a GGUF file."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path

from transformers import AutoConfig, PretrainedConfig
from transformers.utils import logging as transformers_logging

from medusa_trt.errors import ExportError, MedusaError, describe_error
from medusa_trt.export.heads.loading import ADAPTER_CONFIG
from medusa_trt.export.models.adapter import base_model_from_adapter
from medusa_trt.export.models.aliases import Alias, load_aliases
from medusa_trt.export.models.gguf import (
    gguf_from_package,
    is_gguf,
    list_parts,
    name_without_part,
    read_gguf,
)
from medusa_trt.export.models.gguf_config import config_from_gguf
from medusa_trt.export.models.multimodal.text_part import complete_text_config
from medusa_trt.files import join_names
from medusa_trt.runtime.hub import is_hub_id

NO_REMOTE_CODE = {"trust_remote_code": False}
"""Code that comes with a model is never run; left open, transformers asks in the terminal."""


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A place to load a backbone from.

    Attributes:
        name: what the bundle calls the model.
        location: a folder, a hub id, or the folder of a GGUF file.
        gguf_file: the GGUF file's name, if it is one.
        alias: the alias it came from, if any.
        adapter: the folder of a PEFT adapter to merge into it, if any.
    """

    name: str
    location: str
    gguf_file: str | None = None
    alias: Alias | None = None
    adapter: Path | None = None

    @property
    def gguf(self) -> Path | None:
        """The GGUF file, if it is one."""
        return None if self.gguf_file is None else Path(self.location) / self.gguf_file


def source_from_name(name: str) -> ModelSource:
    """Finds a model by what a user types.

    Args:
        name: an alias, a folder in Hugging Face layout, the folder of a PEFT adapter or of one
            GGUF file, a GGUF file of any name or one of its parts, or a hub id `owner/name`.

    Raises:
        ExportError: nothing by that name, an alias whose package is not installed, or an adapter
            that does not name its base model.
    """
    if alias := load_aliases().get(name):
        if alias.package is None:
            assert alias.repository is not None
            return ModelSource(name, alias.repository, alias=alias)
        package = alias.package
        path = gguf_from_package(package.module, package.file, package.requirement)
        return ModelSource(name, str(path.parent), path.name, alias)
    path = Path(name)
    if path.is_file() or path.suffix.lower() == ".gguf":
        return _source_from_gguf(path)
    if path.is_dir():
        return _source_from_folder(path)
    if is_hub_id(name):
        return ModelSource(name.split("/")[1], name)
    raise ExportError(
        f"unknown model {name!r}: give an alias ({', '.join(load_aliases())}), a folder, "
        "a GGUF file or a hub id like owner/name"
    )


def _source_from_gguf(path: Path) -> ModelSource:
    first = list_parts(path)[0]
    return ModelSource(name_without_part(first), str(first.parent), first.name)


def _source_from_folder(folder: Path) -> ModelSource:
    if (folder / "config.json").is_file():
        return ModelSource(folder.resolve().name, str(folder))
    if (folder / ADAPTER_CONFIG).is_file():
        base = source_from_name(base_model_from_adapter(folder))
        return replace(base, name=folder.resolve().name, alias=None, adapter=folder)
    files = {
        list_parts(file)[0]: None
        for file in sorted(folder.iterdir())
        if file.is_file() and is_gguf(file) and not file.name.startswith("mmproj")
    }
    if len(files) == 1:
        return _source_from_gguf(next(iter(files)))
    if files:
        names = join_names(file.name for file in files)
        raise ExportError(f"{folder} holds {len(files)} models: give one of its files, {names}")
    raise ExportError(
        f"{folder} is not a model folder: it has neither a config.json nor a GGUF file"
    )


def load_config(source: ModelSource) -> PretrainedConfig:
    """Loads the config alone; of a model of several kinds of input, that of its language model.

    Raises:
        ExportError: see `load_whole_config`.
    """
    config: PretrainedConfig = load_whole_config(source).get_text_config(decoder=True)
    return config


def load_whole_config(source: ModelSource) -> PretrainedConfig:
    """Loads the config alone, with those of encoders of images or sound, if there are any.

    What it says for the language model is in the config of that too.

    Raises:
        ExportError: it cannot be read, or is of more than a decoder.
    """
    config: PretrainedConfig
    with name_in_errors(source):
        if source.gguf is not None:
            config = config_from_gguf(read_gguf(source.gguf))
        else:
            config = AutoConfig.from_pretrained(source.location, **NO_REMOTE_CODE)
        if config.is_encoder_decoder:
            raise ExportError(
                f"{config.model_type} models have an encoder: only decoders are supported"
            )
        complete_text_config(config)
    return config


@contextmanager
def name_in_errors(source: ModelSource) -> Iterator[None]:
    """Names the model in errors that transformers raises inside the block."""
    try:
        with silence_transformers():
            yield
    except MedusaError:
        raise
    except Exception as error:  # An odd config makes transformers raise almost anything.
        reason = describe_error(error)
        if "trust_remote_code" in str(error):
            reason = "it brings Python code of its own, which is not run"
        place = "/".join(filter(None, (source.location, source.gguf_file)))
        raise ExportError(f"cannot load model {place!r}: {reason}") from error


@contextmanager
def silence_transformers() -> Iterator[None]:
    """Hides loading bars and connection retries: the export tells its progress itself."""
    hub = logging.getLogger("huggingface_hub")
    levels = transformers_logging.get_verbosity(), hub.level
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    hub.setLevel(logging.CRITICAL)
    try:
        with redirect_stderr(StringIO()):  # one of the loading bars heeds no setting
            yield
    finally:
        transformers_logging.set_verbosity(levels[0])
        transformers_logging.enable_progress_bar()
        hub.setLevel(levels[1])
