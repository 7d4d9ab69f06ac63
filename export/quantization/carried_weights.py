"""What becomes of the weights of a quantized checkpoint."""

from collections import Counter
from collections.abc import Hashable

from medusa_trt.export.weight_formats import ReportStored
from medusa_trt.export.weights.lazy_tensor import LazyTensor
from medusa_trt.export.weights.streamed_model import Weights


class CarriedWeights:
    """Counts the weights that were quantized when they were read, by what is stored of them."""

    def __init__(self, weights: Weights, prefix: str) -> None:
        """Takes the weights of a model.

        Args:
            weights: as they are read.
            prefix: of their names in the graph.
        """
        quantized = {
            prefix + name: weight for name, weight in weights.items() if weight.quantization
        }
        # Tied weights are one by several names.
        self._keys: dict[str, Hashable] = {name: each.key for name, each in quantized.items()}
        self._kinds = sorted({str(each.quantization) for each in quantized.values()})
        self._is_exact: dict[Hashable, bool] = {}

    @property
    def report_stored(self) -> ReportStored | None:
        """To be told of each matrix; None where nothing was quantized."""
        return self._record if self._keys else None

    def _record(self, weight: LazyTensor, is_exact: bool) -> None:
        for source in weight.sources:
            if source in self._keys:
                self._is_exact[self._keys[source]] = is_exact

    def describe(self, name: str) -> str | None:
        """One line for the user, a warning where not all is as it was; None without any.

        Args:
            name: of the model.
        """
        counts = Counter(self._is_exact.get(key) for key in set(self._keys.values()))
        if not counts:
            return None
        said = {
            True: "carried over exactly",
            False: "dequantized and rounded again",
            None: "dequantized",
        }
        parts = [f"{counts[kind]} {text}" for kind, text in said.items() if counts[kind]]
        start = "  " if set(counts) == {True} else "warning: "
        kinds = ", ".join(self._kinds)
        return f"{start}{name} has {counts.total()} matrices in {kinds}: {', '.join(parts)}"
