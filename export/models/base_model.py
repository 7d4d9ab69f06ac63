"""Finding and loading the backbone: an alias, a folder, a hub id or a GGUF file."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, replace
from importlib import resources
from io import StringIO
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING
from transformers.utils import GENERATION_CONFIG_NAME
from transformers.utils import logging as transformers_logging

from medusa_trt.errors import ExportError, MedusaError
from medusa_trt.export.heads.loading import ADAPTER_CONFIG
from medusa_trt.export.models.adapter import base_model_of, merged_with_adapter
from medusa_trt.export.models.aliases import Alias, aliases
from medusa_trt.export.models.checkpoint_weights import cached_path, weights_from_checkpoint
from medusa_trt.export.models.gguf import checked_gguf, gguf_from_package
from medusa_trt.export.models.gguf_config import complete_config
from medusa_trt.export.models.gguf_weights import weights_from_gguf
from medusa_trt.export.models.unread_tensors import refuse_unread
from medusa_trt.export.weights.hub import is_hub_id
from medusa_trt.export.weights.packed_weights import Packing, packing_from_config
from medusa_trt.export.weights.streamed_model import Weights, empty_model, weights_in_memory
from medusa_trt.export.weights.tensor_source import PLAIN_DTYPES
from medusa_trt.files import listed

STREAMED_GGUF_BYTES = 512 << 20
"""A smaller GGUF file is dequantized once, a larger one a tensor at a time whenever it is used."""

_OWN_CODE = {"trust_remote_code": False}
"""Code that comes with a model is never run; left open, transformers asks in the terminal."""


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where to load a backbone from.

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


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A backbone with its tokenizer.

    Attributes:
        source: where it comes from.
        model: with its weights in memory, or with parameters on the meta device.
        tokenizer: a fast one.
        weights: of the model, read when they are used.
    """

    source: ModelSource
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    weights: Weights

    @property
    def eos_token_ids(self) -> list[int]:
        """All ids that end a reply: the generation config's and the tokenizer's.

        Raises:
            ExportError: what they name are no ids.
        """
        ids: list[int] = []
        config = self.model.generation_config
        for value in (config.eos_token_id if config else None, self.tokenizer.eos_token_id):
            ids += value if isinstance(value, list) else [] if value is None else [value]
        if others := [each for each in ids if type(each) is not int]:
            raise ExportError(
                f"{self.source.name} ends its replies by {others[0]!r}, which is no token id: "
                "correct eos_token_id in its generation_config.json"
            )
        return sorted(set(ids))


def source_from_name(name: str) -> ModelSource:
    """Finds a model by what a user types.

    Args:
        name: an alias, a folder in Hugging Face layout, the folder of a PEFT adapter, a `.gguf`
            file, or a hub id `owner/name`.

    Raises:
        ExportError: nothing by that name, an alias whose package is not installed, or an adapter
            that does not name its base model.
    """
    if alias := aliases().get(name):
        if alias.package is None:
            assert alias.repository is not None
            return ModelSource(name, alias.repository, alias=alias)
        package = alias.package
        path = gguf_from_package(package.module, package.file, package.requirement)
        return ModelSource(name, str(path.parent), path.name, alias)
    path = Path(name)
    if path.suffix == ".gguf":
        path = checked_gguf(path)
        return ModelSource(path.stem, str(path.parent), path.name)
    if path.is_dir():
        has_config = (path / "config.json").is_file()
        if not has_config and (path / ADAPTER_CONFIG).is_file():
            base = source_from_name(base_model_of(path))
            return replace(base, name=path.resolve().name, alias=None, adapter=path)
        if not has_config:
            raise ExportError(f"{path} is not a model folder: it has no config.json")
        return ModelSource(path.resolve().name, str(path))
    if is_hub_id(name):
        return ModelSource(name.split("/")[1], name)
    raise ExportError(
        f"unknown model {name!r}: give an alias ({', '.join(aliases())}), a folder, "
        "a .gguf file or a hub id like owner/name"
    )


def load_base_model(source: ModelSource) -> BaseModel:
    """Loads weights as float32 and the tokenizer.

    Raises:
        ExportError: the model cannot be loaded, lacks weights, or is of a kind that transformers
            does not know.
        HeadsError: the adapter that belongs to it does not fit.
    """
    model = load_model(source, torch.float32)
    weights = weights_in_memory(model)
    if source.gguf_file is not None and source.adapter is None:
        with _loading(source):
            stored = weights_from_gguf(model, Path(source.location) / source.gguf_file) or {}
        for name, tensor in stored.items():
            weights[name].quantization = tensor.quantization
    return BaseModel(source, model, load_tokenizer(source), weights)


def open_base_model(source: ModelSource) -> BaseModel:
    """Opens a backbone without reading its weights, where its files allow that.

    They do where each parameter is one tensor of a safetensors, PyTorch or GGUF file; others
    are loaded.

    Raises:
        ExportError: see `load_base_model`.
        HeadsError: see `load_base_model`.
    """
    with _loading(source):
        streamed = None if source.adapter is not None else _streamed(source)
    if streamed is None:
        return load_base_model(source)
    model, weights = streamed
    return BaseModel(source, model, load_tokenizer(source), weights)


def _streamed(source: ModelSource) -> tuple[PreTrainedModel, Weights] | None:
    if source.gguf_file is not None:
        return _streamed_gguf(source, Path(source.location) / source.gguf_file)
    config = load_config(source)
    packing = _packing(config)
    if packing is None and getattr(config, "quantization_config", None) is not None:
        return None  # transformers knows more methods
    model = empty_model(config)
    weights = weights_from_checkpoint(model, source.location, packing)
    if weights is None:
        return None
    if cached_path(source.location, GENERATION_CONFIG_NAME):  # many checkpoints have none
        model.generation_config = GenerationConfig.from_pretrained(source.location)
    return model, weights


def _packing(config: PretrainedConfig) -> Packing | None:
    found = getattr(config, "quantization_config", None)
    if found is None:
        return None
    as_dict = found if isinstance(found, dict) else found.to_dict()
    packing = packing_from_config(as_dict)
    method = str(as_dict.get("quant_method"))
    # transformers ignores a method that it does not know, and the scales with it.
    known = {*AUTO_QUANTIZATION_CONFIG_MAPPING, "bitsandbytes"}
    if packing is None and method not in known:
        raise ExportError(
            f"weights quantized by {method!r} are not supported: give the full-precision model, or "
            "GPTQ, AWQ, compressed-tensors or GGUF"
        )
    return packing


def _streamed_gguf(source: ModelSource, path: Path) -> tuple[PreTrainedModel, Weights] | None:
    if path.stat().st_size < STREAMED_GGUF_BYTES:
        return None
    model = empty_model(load_config(source))
    weights = weights_from_gguf(model, path)
    return None if weights is None else (model, weights)


def load_model(source: ModelSource, dtype: torch.dtype | Literal["auto"]) -> PreTrainedModel:
    """Loads the weights, with the adapter merged into them; "auto" keeps the file's own type."""
    config = load_config(source)
    _packing(config)  # refuses what transformers would ignore
    with _loading(source) as gguf:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source.location,
            config=config,
            dtype=dtype,
            output_loading_info=True,
            **_OWN_CODE,
            **gguf,
        )
    model: PreTrainedModel = loaded[0]
    info: dict[str, list[str]] = loaded[1]
    if missing := info["missing_keys"]:
        raise ExportError(
            f"{source.location} lacks weights of the model: {listed(missing)}; give a whole model"
        )
    refuse_unread(model, info["unexpected_keys"], source.location)
    for name, parameter in model.named_parameters():
        if parameter.dtype not in PLAIN_DTYPES:
            raise ExportError(
                f"{source.location} has {name} as {parameter.dtype}, which transformers does not "
                "dequantize here: give the full-precision model"
            )
    if source.adapter is not None:
        with quiet_transformers():
            model = merged_with_adapter(model, source.adapter)
    model.eval()
    return model


def load_tokenizer(source: ModelSource) -> PreTrainedTokenizerBase:
    """Loads the tokenizer."""
    with _loading(source) as gguf:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            source.location, **_OWN_CODE, **gguf
        )
    if not tokenizer.is_fast:
        raise ExportError(f"{source.name} has no fast tokenizer: convert it to tokenizer.json")
    if isinstance(tokenizer.chat_template, dict):  # several, for tools and documents besides
        tokenizer.chat_template = tokenizer.chat_template.get("default")
    template = None if source.alias is None else source.alias.chat_template
    if template is not None and tokenizer.chat_template is None:
        path = resources.files("medusa_trt.export.models.shipped") / template
        tokenizer.chat_template = path.read_text("utf-8")
    return tokenizer


def load_config(source: ModelSource) -> PretrainedConfig:
    """Loads the config alone.

    Raises:
        ExportError: it cannot be read, or is of more than a decoder of text.
    """
    with _loading(source) as gguf:
        config: PretrainedConfig = AutoConfig.from_pretrained(source.location, **_OWN_CODE, **gguf)
        if source.gguf_file is not None:
            complete_config(config, Path(source.location) / source.gguf_file)
    if "text_config" in config.sub_configs:
        found = "several kinds of input: only models of text alone"
    elif config.is_encoder_decoder:
        found = "an encoder: only decoders"
    else:
        return config
    raise ExportError(f"{config.model_type} models have {found} are supported")


@contextmanager
def _loading(source: ModelSource) -> Iterator[dict[str, str]]:
    """Names the model in errors of transformers; gives the arguments that a GGUF file needs."""
    try:
        with quiet_transformers():
            yield {} if source.gguf_file is None else {"gguf_file": source.gguf_file}
    except MedusaError:
        raise
    except Exception as error:  # an odd config makes transformers raise almost anything
        reason = " ".join(str(error).split()) or type(error).__name__
        if "trust_remote_code" in reason:
            reason = "it brings Python code of its own, which is not run"
        place = "/".join(filter(None, (source.location, source.gguf_file)))
        raise ExportError(f"cannot load model {place!r}: {reason[:300]}") from error


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Hides loading bars and connection retries: the export shows its own progress."""
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
