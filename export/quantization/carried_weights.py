"""A record of how the weights of a quantized checkpoint are stored in a bundle."""

from collections import Counter
from collections.abc import Hashable

from medusa_trt.export.weight_formats import ReportStored
from medusa_trt.export.weights.lazy_tensor import LazyTensor
from medusa_trt.export.weights.streamed_model import Weights


class CarriedWeights:
    """Counts the weights of a quantized checkpoint by how exactly they are stored."""

    def __init__(self, weights: Weights, prefix: str) -> None:
        """Takes the weights of a model, whose names have this prefix in the graph."""
        quantized = {
            prefix + name: weight for name, weight in weights.items() if weight.quantization
        }
        # Tied weights are one tensor with several names.
        self._keys: dict[str, Hashable] = {name: weight.key for name, weight in quantized.items()}
        self._kinds = sorted({str(weight.quantization) for weight in quantized.values()})
        self._is_exact: dict[Hashable, bool] = {}

    @property
    def report_stored(self) -> ReportStored | None:
        """Function to call for each stored matrix; None where the checkpoint is not quantized."""
        return self._record if self._keys else None

    def _record(self, weight: LazyTensor, is_exact: bool) -> None:
        for source in weight.sources:
            if source in self._keys:
                self._is_exact[self._keys[source]] = is_exact

    def describe(self, name: str) -> str | None:
        """Describes the model's weights in one line, as a warning if some changed; None without."""
        counts = Counter(self._is_exact.get(key) for key in set(self._keys.values()))
        if not counts:
            return None
        texts = {
            True: "carried over exactly",
            False: "dequantized and rounded again",
            None: "dequantized",
        }
        parts = [f"{counts[kind]} {text}" for kind, text in texts.items() if counts[kind]]
        start = "  " if set(counts) == {True} else "warning: "
        kinds = ", ".join(self._kinds)
        return f"{start}{name} has {counts.total()} matrices in {kinds}: {', '.join(parts)}"
