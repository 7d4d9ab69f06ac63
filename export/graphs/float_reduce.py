"""The reduce graph: what sampling and typical acceptance need, from rows of logits.

It is a separate graph because ONNX Runtime computes every output of a graph, even one that is not
fetched. As a part of the verify graph it would slow greedy decoding down.
"""

from typing import Any

import onnx_ir as ir
from onnxscript import BOOL, DOUBLE, FLOAT, INT64, opset23, script

from medusa_trt.export.graphs.reduce_interface import declare_outputs
from medusa_trt.runtime import tensors as names

op: Any = opset23
"""onnxscript reads the body below as ONNX; its operators are typed for eager tensors."""

_DOUBLE = 11
_INT64 = 7


@script()
def _reduce(
    logits: FLOAT["num_rows", "vocab_size"],
    candidates: INT64["num_rows"],
    parent_rows: INT64["num_rows"],
    uniforms: DOUBLE["num_rows"],
    temperature: FLOAT[1],
    num_sorted: INT64[1],
    cut_top_k: BOOL[1],
    top_p: FLOAT[1],
    min_p: FLOAT[1],
):
    last = op.Constant(value_ints=[-1])
    lowest = op.Constant(value_float=float("-inf"))
    scaled = op.Div(logits, temperature)

    logprobs = op.LogSoftmax(scaled, axis=-1)
    probs = op.Exp(logprobs)
    # A probability of zero has the logarithm -inf, and adds nothing to the entropy.
    terms = op.Where(op.Greater(probs, 0.0), op.Mul(probs, logprobs), 0.0)
    entropy = op.Neg(op.ReduceSum(terms, last, keepdims=0))
    parents = op.Gather(logprobs, parent_rows, axis=0)
    candidate_column = op.GatherElements(parents, op.Unsqueeze(candidates, last), axis=1)
    candidate_logprob = op.Squeeze(candidate_column, last)

    top, _ = op.TopK(scaled, num_sorted, axis=-1)
    highest = op.Slice(top, [0], [1], [1])
    least = op.Slice(top, [-1], [9223372036854775807], [1])
    k_threshold = op.Where(cut_top_k, least, lowest)

    # The nucleus: tokens before which the more likely ones do not reach top_p yet.
    k_weights = op.Where(
        op.GreaterOrEqual(scaled, k_threshold), op.Exp(op.Sub(scaled, highest)), 0.0
    )
    total = op.ReduceSum(op.Cast(k_weights, to=_DOUBLE), last)
    weights = op.Cast(op.Exp(op.Sub(top, highest)), to=_DOUBLE)
    reached = op.CumSum(weights, op.Constant(value_int=1))
    goal = op.Mul(op.Cast(top_p, to=_DOUBLE), total)
    # The last of the nucleus, by its place: ONNX Runtime's ReduceMin on CUDA wants cuDNN.
    in_nucleus = op.Cast(op.Less(op.Sub(reached, weights), goal), to=_INT64)
    size = op.Max(op.ReduceSum(in_nucleus, last), op.Constant(value_ints=[1]))
    nucleus = op.GatherElements(top, op.Sub(size, op.Constant(value_ints=[1])), axis=1)
    all_of_it = op.GreaterOrEqual(top_p, 1.0)
    p_threshold = op.Where(all_of_it, lowest, nucleus)
    enough = op.GreaterOrEqual(op.Slice(reached, [-1], [9223372036854775807], [1]), goal)
    covered = op.Squeeze(op.Or(op.Or(all_of_it, cut_top_k), enough), last)

    m_threshold = op.Add(highest, op.Log(min_p))
    threshold = op.Max(k_threshold, p_threshold, m_threshold)
    mass = op.Cast(
        op.Where(op.GreaterOrEqual(scaled, threshold), op.Exp(op.Sub(scaled, highest)), 0.0),
        to=_DOUBLE,
    )
    cumulative = op.CumSum(mass, op.Constant(value_int=1))
    total_mass = op.Slice(cumulative, [-1], [9223372036854775807], [1])
    drawn_mass = op.Mul(op.Unsqueeze(uniforms, last), total_mass)
    passed = op.Cast(op.LessOrEqual(cumulative, drawn_mass), to=_INT64)
    sampled = op.ReduceSum(passed, last, keepdims=0)
    return sampled, covered, entropy, candidate_logprob


def make_float_reduce(vocab_size: int, opset: int) -> ir.Model:
    """Makes the reduce graph; its inputs and outputs are those of `Engine.reduce`.

    Tokens whose logit equals that of the last token kept by top-k or top-p are kept too. A nucleus
    larger than the `num_sorted` most likely tokens is reported as not covered.
    """
    model = ir.serde.deserialize_model(_reduce.to_model_proto())
    graph = model.graph
    graph.opset_imports[""] = opset
    declare_outputs(graph.outputs)
    logits = graph.inputs[0]
    assert logits.name == names.LOGITS
    logits.shape = ir.Shape(["num_rows", vocab_size])
    model.producer_name = "medusa-trt"
    return model
