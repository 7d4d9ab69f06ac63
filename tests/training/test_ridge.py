"""Initial linear maps against least squares."""

import numpy as np
import pytest
import torch

from medusa_trt.training.ridge import fit_ridge_maps


@pytest.mark.parametrize("num_pieces", [1, 3])
def test_ridge_without_penalty_is_least_squares(num_pieces: int) -> None:
    """From 7 inputs to the change of 5 hidden values."""
    rng = np.random.default_rng(0)
    pieces = []
    for piece in range(num_pieces):
        lengths = [20, 1, 2, 30]
        ids = np.repeat(np.arange(4) + 10 * piece, lengths)
        x, hidden = rng.normal(size=(sum(lengths), 7)), rng.normal(size=(sum(lengths), 5))
        pieces.append((x, hidden, ids))
    tensors = [(torch.tensor(x), torch.tensor(h), torch.tensor(ids)) for x, h, ids in pieces]
    maps = fit_ridge_maps(tensors, num_heads=2, ridge=0.0)
    for ahead, map_ in enumerate(maps, start=1):
        inputs, outputs = [], []
        for x, hidden, ids in pieces:
            for row in range(len(x) - ahead):
                if ids[row] == ids[row + ahead]:
                    inputs.append([*x[row], 1.0])
                    outputs.append(hidden[row + ahead] - hidden[row])
        solution = np.linalg.lstsq(np.array(inputs), np.array(outputs), rcond=None)[0]
        assert map_.bias is not None
        assert np.allclose(map_.weight.numpy(), solution[:-1].T, atol=1e-5)
        assert np.allclose(map_.bias.numpy(), solution[-1], atol=1e-5)
