"""The reduce graph for TensorRT, which has no float64, and no fast cumulative sum in 10.3.

Probabilities are added up as integers: the weight exp(logit - highest) of a token in fixed point.
Such a sum is exact in any order, so what is drawn from a row depends neither on the other rows nor
on the kernel that added. A place in a cumulative sum is found in three levels, each of about the
cube root of the number of tokens, with no cumulative sum over all of them.
"""

from collections.abc import Sequence
from math import ceil

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from medusa_trt.export.graphs.reduce_interface import declare_outputs, make_inputs
from medusa_trt.runtime.engines.reduce_tensors import NUM_SORTED, SHARE_BITS

_SUM_BITS = 58
"""Bits of a sum of all weights: few enough that its high part times a share fits in 63 bits."""

_MOST_WEIGHT_BITS = 40
_LEAST = -1e30
"""Stands for minus infinity, whose product with a probability of zero would be NaN."""


def make_integer_reduce(vocab_size: int, opset: int, *, num_sorted: int = NUM_SORTED) -> ir.Model:
    """Makes the reduce graph with integer sums; see `make_float_reduce`.

    `uniforms` is int64, in units of 2^-31. `top_k` keeps all tokens at 0. A nucleus that the
    `num_sorted` most likely tokens do not hold is reported as not covered, and so is a larger
    `top_k`. A weight below 2^-40 of the largest counts as zero, or below 2^-58 times the
    vocabulary's size where that is more.
    """
    inputs = make_inputs(vocab_size, ir.DataType.INT64)
    writer = _Writer(vocab_size, min(num_sorted, vocab_size))
    outputs = writer.write_reductions(*inputs)
    declare_outputs(outputs)
    graph = ir.Graph(inputs, outputs, nodes=writer.nodes, opset_imports={"": opset}, name="reduce")
    return ir.Model(graph, ir_version=10, producer_name="medusa-trt")


class _Writer:
    """Writes the nodes. Columns are (num_rows, 1), rows of tokens (num_rows, length)."""

    def __init__(self, vocab_size: int, num_sorted: int) -> None:
        self._tape = Tape()
        self._vocab_size, self._num_sorted = vocab_size, num_sorted
        self._bits = min(_MOST_WEIGHT_BITS, _SUM_BITS - vocab_size.bit_length())

    @property
    def nodes(self) -> Sequence[ir.Node]:
        return self._tape.nodes

    def write_reductions(
        self,
        logits: ir.Value,
        candidates: ir.Value,
        parent_rows: ir.Value,
        uniforms: ir.Value,
        temperature: ir.Value,
        top_k: ir.Value,
        top_p: ir.Value,
        min_p: ir.Value,
    ) -> tuple[ir.Value, ir.Value, ir.Value, ir.Value]:
        """Sampled, covered, entropy and log-probabilities of the candidates."""
        op = self._op
        scaled = op("Div", logits, temperature)
        shifted = op("Sub", scaled, op("ReduceMax", scaled, self._int([-1])))
        shifted = op("Max", shifted, self._float([_LEAST]))
        weights = op("Exp", shifted)

        log_total, entropy = self._compute_entropy(shifted, weights)
        places = op("Concat", *map(self._make_column, (parent_rows, candidates)), axis=1)
        parents = op("Gather", self._flatten(log_total), parent_rows, axis=0)
        candidate_logprob = op("Sub", op("GatherND", shifted, places), parents)

        threshold, covered = self._find_threshold(shifted, weights, top_k, top_p)
        is_kept = op(
            "And",
            op("GreaterOrEqual", shifted, threshold),
            op("GreaterOrEqual", weights, min_p),
        )
        kept_weights = self._convert_to_fixed(op("Where", is_kept, weights, self._float([0])))
        drawn_mass, _ = self._take_shares(self._sum(kept_weights), self._make_column(uniforms))
        sampled = self._flatten(self._find_place(kept_weights, self._vocab_size, drawn_mass))
        return sampled, self._flatten(covered), self._flatten(entropy), candidate_logprob

    def _compute_entropy(self, shifted: ir.Value, weights: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Columns: log Σ w, and log Σ w + Σ w (-log w) / Σ w."""
        op = self._op
        total = self._sum_floats(weights)
        spread = op("Div", self._sum_floats(op("Mul", weights, op("Neg", shifted))), total)
        log_total = op("Log", total)
        return log_total, op("Add", log_total, spread)

    def _find_threshold(
        self, shifted: ir.Value, weights: ir.Value, top_k: ir.Value, top_p: ir.Value
    ) -> tuple[ir.Value, ir.Value]:
        """Columns: the least logit that top-k and top-p keep, and whether that is exact."""
        op, zero, one = self._op, self._int([0]), self._int([1])
        lowest, last = self._float([_LEAST]), self._int([self._num_sorted - 1])
        top = self._tape.op_multi_out(
            "TopK", [shifted, self._int([self._num_sorted])], {"axis": -1}, num_outputs=2
        )[0]
        cuts = op("Greater", top_k, zero)
        index = op("Min", op("Max", op("Sub", top_k, one), zero), last)
        k_threshold = op("Where", cuts, op("Gather", top, index, axis=1), lowest)
        k_held = op("LessOrEqual", top_k, self._int([self._num_sorted]))

        # The last of the nucleus: where the cumulative sum reaches top_p for the first time.
        likely = op("GreaterOrEqual", shifted, k_threshold)
        total = self._sum(self._convert_to_fixed(op("Where", likely, weights, self._float([0]))))
        share = op(
            "Cast", op("Mul", top_p, self._float([float(1 << SHARE_BITS)])), to=ir.DataType.INT64
        )
        _, goal = self._take_shares(total, share)
        top_weights = self._convert_to_fixed(op("Exp", top))
        size = self._find_place(top_weights, self._num_sorted, op("Sub", goal, one))
        nucleus = op("GatherElements", top, size, axis=1)
        keeps_all = op("GreaterOrEqual", top_p, self._float([1]))
        p_threshold = op("Where", keeps_all, lowest, nucleus)
        p_held = op("Or", keeps_all, op("GreaterOrEqual", self._sum(top_weights), goal))
        return op("Max", k_threshold, p_threshold), op("And", k_held, p_held)

    def _find_place(self, weights: ir.Value, length: int, target: ir.Value) -> ir.Value:
        """Column: how many tokens lie before the one where the cumulative sum exceeds `target`.

        The last token if it never does.
        """
        op = self._op
        size = ceil(length ** (1 / 3) - 1e-9)
        num_groups = ceil(length / size**2)
        padding = num_groups * size**2 - length
        if padding:
            weights = op("Pad", weights, self._int([0, 0, 0, padding]), self._int(0))
        left = op("Reshape", weights, self._int([0, num_groups, size, size]))
        place: ir.Value | None = None
        for axes, width in (([2, 3], num_groups), ([2], size), ([], size)):
            sums = op("ReduceSum", left, self._int(axes), keepdims=0) if axes else left
            before = self._add_constant(np.tril(np.ones((width, width), np.int64)))
            spread = op("Mul", op("Unsqueeze", sums, self._int([1])), before)
            running = op("ReduceSum", spread, self._int([2]), keepdims=0)
            passed = op("Cast", op("LessOrEqual", running, target), to=ir.DataType.INT64)
            index = op("Min", self._sum(passed), self._int([width - 1]))
            target = op("Sub", target, self._sum(op("Mul", passed, sums)))
            place = (
                index if place is None else op("Add", op("Mul", place, self._int([width])), index)
            )
            if axes:
                left = op("GatherND", left, index, batch_dims=1)
        assert place is not None
        return op("Min", place, self._int([length - 1]))

    def _take_shares(self, total: ir.Value, share: ir.Value) -> tuple[ir.Value, ir.Value]:
        """`total` times `share` · 2^-31, rounded down and up; neither product overflows."""
        op, unit = self._op, self._int([1 << SHARE_BITS])
        high = op("Div", total, unit)
        low = op("Mul", op("Sub", total, op("Mul", high, unit)), share)
        rounded_up = op("Add", low, self._int([(1 << SHARE_BITS) - 1]))
        high_share = op("Mul", high, share)
        least, most = op("Div", low, unit), op("Div", rounded_up, unit)
        return op("Add", high_share, least), op("Add", high_share, most)

    def _convert_to_fixed(self, weights: ir.Value) -> ir.Value:
        """Weights of at most 1 in fixed point."""
        scaled = self._op("Mul", weights, self._float([float(1 << self._bits)]))
        return self._op("Cast", scaled, to=ir.DataType.INT64)

    def _sum_floats(self, weights: ir.Value) -> ir.Value:
        """Column: their sum in float32, rounded once."""
        total = self._op("Cast", self._sum(self._convert_to_fixed(weights)), to=ir.DataType.FLOAT)
        return self._op("Mul", total, self._float([2.0**-self._bits]))

    def _sum(self, values: ir.Value) -> ir.Value:
        return self._op("ReduceSum", values, self._int([-1]))

    def _make_column(self, values: ir.Value) -> ir.Value:
        return self._op("Unsqueeze", values, self._int([-1]))

    def _flatten(self, column: ir.Value) -> ir.Value:
        return self._op("Squeeze", column, self._int([-1]))

    def _int(self, values: int | Sequence[int]) -> ir.Value:
        return self._add_constant(np.array(values, np.int64))

    def _float(self, values: Sequence[float]) -> ir.Value:
        return self._add_constant(np.array(values, np.float32))

    def _add_constant(self, array: np.ndarray) -> ir.Value:
        return self._tape.op("Constant", [], {"value": ir.tensor(array)})

    def _op(self, op_type: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        return self._tape.op(op_type, list(inputs), attributes)
