"""Tied parameters, for which a checkpoint may hold tensors that differ."""

import numpy as np
import pytest
from numpy.typing import NDArray
from support.tiny_models import llama_config, random_model

from medusa_trt.export.weights.lazy_tensor import LazyTensor
from medusa_trt.export.weights.tied_weights import get_embeddings, untie_unequal

EMBEDDING, UNEMBEDDING = "model.embed_tokens.weight", "lm_head.weight"


@pytest.mark.parametrize("differs", [False, True])
def test_only_tensors_of_a_tied_parameter_are_read_and_compared(differs: bool) -> None:
    model = random_model(llama_config(tie_word_embeddings=True))
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    read: list[str] = []

    def store(name: str, value: float) -> LazyTensor:
        shape = shapes.get(name, shapes[EMBEDDING])

        def read_tensor() -> NDArray[np.float64]:
            read.append(name)
            return np.full(shape, value)

        return LazyTensor(read_tensor, shape, name)

    # A tensor that is not equal to itself: comparing it with itself would untie it.
    stored = {name: store(name, float("nan")) for name in shapes}
    stored[EMBEDDING] = store(EMBEDDING, 1.0)
    stored[UNEMBEDDING] = store(UNEMBEDDING, 2.0 if differs else 1.0)
    tensors = untie_unequal(model, stored)
    assert set(read) == {EMBEDDING, UNEMBEDDING}
    embedding, unembedding = get_embeddings(model)
    assert (embedding is unembedding) == model.config.tie_word_embeddings == (not differs)
    assert tensors[EMBEDDING] is stored[EMBEDDING]
    assert tensors[UNEMBEDDING] is stored[UNEMBEDDING if differs else EMBEDDING]
