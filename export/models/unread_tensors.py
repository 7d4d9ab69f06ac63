"""Tensors of a checkpoint that the model has no place for, though it has one beside them."""

import re
from collections.abc import Callable, Iterable

from transformers import PreTrainedModel

from medusa_trt.errors import ExportError
from medusa_trt.files import join_names

_HARMLESS = re.compile(r"(rotary_emb|rotary_pos_emb|attention|attn)\.(inv_freq|bias|masked_bias)$")
"""Tensors that older releases of transformers saved with the weights: frequencies, causal masks."""


def refuse_unread(
    model: PreTrainedModel,
    names: Iterable[str],
    location: str,
    is_zero: Callable[[str], bool] = lambda _: False,
) -> None:
    """Refuses a checkpoint whose tensors belong to the model's own layers, and are not used.

    A bias that the config does not mention, a scale without its quantization or the norm of
    another architecture: without them the model would compute something else. Whatever lies
    elsewhere, an image encoder or further heads, is not part of the model.

    Args:
        model: the model.
        names: of the tensors that are left over.
        location: of the checkpoint.
        is_zero: whether a tensor is nothing but zeros, as the biases are that GPTQ's tools add.

    Raises:
        ExportError: it names the tensors.
    """
    layers = tuple(
        f"{name}."
        for name, module in model.named_modules()
        if name.rpartition(".")[2].isdigit() or any(True for _ in module.parameters(recurse=False))
    )
    unread = [
        name
        for name in names
        if name.startswith(layers)
        and not _HARMLESS.search(name)
        and not (name.endswith(".bias") and is_zero(name))
    ]
    if unread:
        raise ExportError(
            f"{location} has weights that a {model.config.model_type} model of its config does not "
            f"use: {join_names(unread)}; correct the config, or give another model"
        )
