"""What differs between deployment targets: one row each."""

from dataclasses import dataclass
from typing import Literal

from medusa_trt.errors import ExportError
from medusa_trt.runtime.operators import library_path, required_library

AttentionForm = Literal["group_query_attention", "tensor_scatter", "tree_attention"]
"""How the verify graph attends and updates its cache:

- group_query_attention: `com.microsoft.GroupQueryAttention`, which ONNX Runtime's CPU provider runs
  with a tree mask for one sequence only;
- tensor_scatter: the standard `TensorScatter` and `Attention` of opset 24, for any batch;
- tree_attention: the operator library's own `TreeAttention`, for any batch.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """How the weights are stored, and what runs on them.

    Attributes:
        name: what `--precision` calls it.
        attention: the form of attention and cache update for one sequence.
        batch_attention: the form for several sequences, a verify graph of its own; None where
            `attention` takes them.
        min_rows: see `TargetSpec`.
        layer_bits: bits of the layers' weights where the operator library multiplies; None where
            ONNX Runtime does.
        unembedding_bits: bits of the unembedding and the heads, likewise.
    """

    name: str
    attention: AttentionForm
    batch_attention: AttentionForm | None = None
    min_rows: int = 1
    layer_bits: int | None = None
    unembedding_bits: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """How a model is exported for one place where it runs.

    Attributes:
        name: what `--target` calls it.
        precisions: weight precisions on offer, the default first.
        opset: ONNX opset of the graphs.
        prefill_chunk: tokens of one prefill step.
        default_tree: the tree for heads that come without one of their own.
        max_length: default limit on the sequence length, where the model allows more.
    """

    name: str
    precisions: tuple[Precision, ...]
    opset: int
    prefill_chunk: int
    default_tree: str
    max_length: int


TARGETS = {
    "ort-cpu": Target(
        name="ort-cpu",
        precisions=(
            Precision(name="int8", attention="tree_attention", layer_bits=8, unembedding_bits=8),
            Precision(name="int4", attention="tree_attention", layer_bits=4, unembedding_bits=8),
            Precision(
                name="fp32",
                attention="group_query_attention",
                batch_attention="tensor_scatter",
                min_rows=2,
            ),
        ),
        opset=23,
        prefill_chunk=128,
        default_tree="smollm2_135m_6",
        max_length=8192,
    ),
}


def target_from_name(name: str) -> Target:
    """Looks a target up.

    Raises:
        ExportError: there is no such target.
    """
    try:
        return TARGETS[name]
    except KeyError:
        raise ExportError(
            f"unknown target {name!r}: choose from {', '.join(sorted(TARGETS))}"
        ) from None


def precision_from_name(target: Target, name: str | None) -> Precision:
    """Looks a precision up; for None the target's default, of those that this machine can run.

    Raises:
        ExportError: the target does not offer it, or it needs the operator library.
    """
    has_library = library_path() is not None
    for precision in target.precisions:
        if name is None and (has_library or precision.layer_bits is None):
            return precision
        if precision.name == name:
            if precision.layer_bits is not None:
                required_library()
            return precision
    raise ExportError(
        f"target {target.name} has no precision {name!r}: "
        f"choose from {', '.join(precision.name for precision in target.precisions)}"
    )


def fallback_notice(target: Target, precision: Precision, name: str | None) -> str | None:
    """What to tell a user who named no precision and does not get the target's default."""
    default = target.precisions[0]
    if name is not None or precision is default:
        return None
    return (
        f"the operator library was not built, so this is an export in {precision.name} instead of "
        f"{default.name}: for {default.name} install a C++ compiler and medusa-trt again"
    )
