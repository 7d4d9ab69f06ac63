"""Tied parameters: one tensor under several names, as a model's embedding and unembedding."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from medusa_trt.export.weights.lazy_tensor import LazyTensor


def untie_unequal(
    model: PreTrainedModel, stored: Mapping[str, LazyTensor]
) -> dict[str, LazyTensor]:
    """Unties parameters for which a checkpoint has tensors that differ, as transformers does.

    Args:
        model: without weights in memory; it is changed.
        stored: the checkpoint's tensors by parameter name.

    Returns:
        The tensor of each parameter, by all of its names, without parameters that have none.
    """
    first_names: dict[int, str] = {}
    for name, parameter in list(model.named_parameters(remove_duplicate=False)):
        if name in stored:
            first = first_names.setdefault(id(parameter), name)
            if first != name and not _is_equal(stored[first], stored[name]):
                module, _, key = name.rpartition(".")
                untied = nn.Parameter(torch.empty_like(parameter), requires_grad=False)
                setattr(model.get_submodule(module), key, untied)
    record_ties(model)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    tensors: dict[int, LazyTensor] = {}
    for name, parameter in parameters.items():
        if name in stored:
            tensors.setdefault(id(parameter), stored[name])
    return {
        name: tensors[id(parameter)]
        for name, parameter in parameters.items()
        if id(parameter) in tensors
    }


def untie_embeddings(model: PreTrainedModel) -> None:
    """Gives the unembedding a copy of the embedding, if they are one tensor."""
    embedding, unembedding = get_embeddings(model)
    if unembedding is embedding:
        model.get_output_embeddings().weight = nn.Parameter(unembedding.detach().clone())


def tie_equal_embeddings(model: PreTrainedModel) -> None:
    """Makes the embedding and the unembedding one tensor, if they hold the same numbers."""
    embedding, unembedding = get_embeddings(model)
    if torch.equal(embedding, unembedding):
        model.get_output_embeddings().weight = embedding
    record_ties(model)


def record_ties(model: PreTrainedModel) -> None:
    """Makes the config say whether embedding and unembedding are one tensor.

    A model that is saved or copied by its config would else lose one of two tensors.
    """
    embedding, unembedding = get_embeddings(model)
    model.config.tie_word_embeddings = unembedding is embedding


def get_embeddings(model: PreTrainedModel) -> tuple[nn.Parameter, nn.Parameter]:
    """Gets the matrices (vocab, hidden) of the embedding and of the unembedding."""
    embedding = model.get_input_embeddings().weight
    unembedding = model.get_output_embeddings().weight
    assert isinstance(embedding, nn.Parameter) and isinstance(unembedding, nn.Parameter)
    return embedding, unembedding


def _is_equal(left: LazyTensor, right: LazyTensor) -> bool:
    return left.sizes == right.sizes and np.array_equal(left.stored(), right.stored())
