"""Heads with trainable parameters."""

import pytest
import torch
from support.checkpoints.checkpoint_tensors import heads_from_tensors
from support.ruled_data import V

from medusa_trt.export.graphs.heads_module import HeadsModule
from medusa_trt.export.head_conversion.saving import name_tensors
from medusa_trt.export.heads.formats import FORMATS
from medusa_trt.training.data.targets import DraftVocabulary
from medusa_trt.training.options import HeadsShape
from medusa_trt.training.trainable_heads import TrainableHeads, shape_from_heads


@pytest.mark.parametrize("has_own_unembedding", [False, True])
def test_heads_and_layers_are_not_tied(has_own_unembedding: bool) -> None:
    shape = HeadsShape(
        num_heads=3, num_layers=2, has_projection=True, has_own_unembedding=has_own_unembedding
    )
    unembedding = torch.randn(V, 8)
    heads = TrainableHeads(shape, DraftVocabulary(None, V), unembedding, torch.randn(V, 8))
    parameters = dict(heads.named_parameters())
    assert len({value.data_ptr() for value in parameters.values()}) == len(parameters)
    assert len(parameters) == 3 * (2 * 2 + 2 + 2 + has_own_unembedding)
    for name, value in parameters.items():
        before = {other: tensor.detach().clone() for other, tensor in parameters.items()}
        with torch.no_grad():
            value.add_(1)
        changed = {o for o, tensor in parameters.items() if not torch.equal(tensor, before[o])}
        assert changed == {name}


@pytest.mark.parametrize("has_root_map", [True, False])
@pytest.mark.parametrize("has_projection", [True, False])
def test_the_checkpoint_gives_the_logits_that_were_trained(
    has_root_map: bool, has_projection: bool
) -> None:
    shape = HeadsShape(
        num_heads=2,
        num_layers=2,
        has_root_map=has_root_map,
        has_projection=has_projection,
        has_own_unembedding=True,
    )
    vocabulary = DraftVocabulary(torch.tensor([1, 4, 30]), V)
    unembedding, embedding, hidden = torch.randn(V, 8), torch.randn(V, 8), torch.randn(5, 8)
    roots = torch.randint(V, (5,))
    heads = TrainableHeads(shape, vocabulary, unembedding, embedding)
    for parameter in heads.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    tensors = name_tensors(heads.to_heads(), FORMATS["medusa-trt"], torch.float32)
    read = heads_from_tensors(tensors, "test")
    exported = HeadsModule(read, unembedding, top_k=2, embedding=embedding)
    expected = heads.compute_logits(hidden, roots)
    assert torch.allclose(exported.logits(hidden, roots), expected, atol=1e-5)
    other = heads.compute_logits(hidden, (roots + 1) % V)
    assert torch.equal(other, expected) != has_root_map
    assert shape_from_heads(read) == shape
    again = TrainableHeads(shape, vocabulary, unembedding, embedding)
    again.load_heads(read)
    assert torch.equal(again.compute_logits(hidden, roots), expected)
