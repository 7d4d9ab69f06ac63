"""What step times mean: all layers from few, and the speedup of the best tree."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod

from medusa_trt.calibration.trees.growth import grow

VICUNA_7B_TOP_K = (
    (0.5604, 0.6717, 0.7271, 0.7599, 0.7799),
    (0.3164, 0.4236, 0.4851, 0.5282, 0.5625),
    (0.2010, 0.2879, 0.3475, 0.3834, 0.4169),
    (0.1474, 0.2250, 0.2737, 0.3109, 0.3397),
    (0.1175, 0.1866, 0.2346, 0.2721, 0.2998),
)
"""Share of tokens among the first 1 to 5 candidates of each head of Vicuna-7B v1.3, Medusa-1.

Published in assets/medusa_acc.csv of FasterDecoding/Medusa, rounded here."""


def scale_to_layers(one: float, cut: float, num_cut: int, num_layers: int) -> float:
    """Extends a time, or a size, measured with one layer and with `num_cut`, to all layers.

    Each layer adds the same; all that is not a layer is in the figure with one layer.
    """
    return one + (num_layers - 1) * (cut - one) / (num_cut - 1)


def rank_accuracies(top_k: Sequence[Sequence[float]]) -> list[list[float]]:
    """Share of tokens at each rank, from the shares among the first ranks."""
    return [[shares[0], *(more - less for less, more in pairwise(shares))] for shares in top_k]


def expect_length(accuracies: Sequence[Sequence[float]], paths: Iterable[Sequence[int]]) -> float:
    """Tokens per step of a tree, if the heads are right independently of each other."""
    probabilities = (
        prod(accuracies[depth][rank] for depth, rank in enumerate(path)) for path in paths
    )
    return 1 + sum(probabilities)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """A tree and its predicted speed.

    Attributes:
        num_nodes: its nodes, with the root.
        length: tokens per step.
        step_ms: time of a step, with the heads.
        speedup: speed over that of one token per step.
    """

    num_nodes: int
    length: float
    step_ms: float
    speedup: float


def predict(
    steps_ms: Mapping[int, float], heads_ms: float, accuracies: Sequence[Sequence[float]]
) -> list[Prediction]:
    """Predicts the speed of the best tree of each size.

    Args:
        steps_ms: time of a step by its number of rows; that of one row is plain decoding.
        heads_ms: time of the heads for one step.
        accuracies: share of tokens at each rank of each head.
    """
    order = grow(accuracies, max(steps_ms))
    predictions = []
    for num_nodes in sorted(steps_ms):
        length = expect_length(accuracies, order[: num_nodes - 1])
        step_ms = steps_ms[num_nodes] + (heads_ms if num_nodes > 1 else 0)
        predictions.append(
            Prediction(
                num_nodes=num_nodes,
                length=length,
                step_ms=step_ms,
                speedup=length * steps_ms[1] / step_ms,
            )
        )
    return predictions
