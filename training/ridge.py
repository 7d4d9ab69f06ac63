"""Initial linear maps of heads, fitted by ridge regression of later hidden states."""

from collections.abc import Iterable

import torch

from medusa_trt.export.heads.medusa_heads import Linear

Piece = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""(R, inputs) what the map reads, (R, hidden) hidden states, (R,) reply ids; whole replies."""


def fit_ridge_maps(pieces: Iterable[Piece], num_heads: int, ridge: float) -> list[Linear]:
    """Fits, for each head i from 0, x_r → h_(r+1+i) − h_r within replies, by ridge regression.

    The backbone predicts the head's target token from the later state. So a head whose blocks are
    still zero starts as the best linear estimate of that state. The bias has no penalty.

    Args:
        pieces: the data, with reply ids as in `ReplyRows`.
        num_heads: number of maps to fit.
        ridge: the penalty, relative to the mean of the squared inputs; 0 is least squares.

    Returns:
        A float32 map with a bias for each head.
    """
    sums = [_Sums() for _ in range(num_heads)]
    for x, hidden, reply_ids in pieces:
        for ahead, total in enumerate(sums, start=1):
            is_pair = reply_ids[:-ahead] == reply_ids[ahead:]
            difference = hidden[ahead:][is_pair].float() - hidden[:-ahead][is_pair].float()
            total.add(x[:-ahead][is_pair].float(), difference)
    return [total.solve(ridge) for total in sums]


class _Sums:
    """Sums over (x, y) pairs in float64, from which the map is solved."""

    def __init__(self) -> None:
        self._xx = self._xy = self._x = self._y = torch.zeros((), dtype=torch.float64)
        self._count = 0

    def add(self, x: torch.Tensor, difference: torch.Tensor) -> None:
        """Adds N pairs: (N, inputs) and (N, hidden)."""
        self._xx = self._xx + (x.T @ x).double()
        self._xy = self._xy + (x.T @ difference).double()
        self._x = self._x + x.double().sum(0)
        self._y = self._y + difference.double().sum(0)
        self._count += len(x)

    def solve(self, ridge: float) -> Linear:
        """Solves for the map; it is zero if there were no pairs."""
        count = max(1, self._count)
        mean_x, mean_y = self._x.cpu() / count, self._y.cpu() / count
        covariance = self._xx.cpu() - count * mean_x.outer(mean_x)
        cross = self._xy.cpu() - count * mean_x.outer(mean_y)
        penalty = ridge * float(self._xx.diagonal().mean())
        covariance.diagonal().add_(penalty)
        weight = torch.linalg.lstsq(covariance, cross, driver="gelsd").solution.T
        return Linear(weight.float(), (mean_y - weight @ mean_x).float())
