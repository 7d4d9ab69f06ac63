"""What differs between deployment targets: one row each."""

from dataclasses import dataclass
from typing import Literal

from medusa_trt.errors import ExportError

AttentionForm = Literal["group_query_attention", "tensor_scatter"]
"""How the verify graph attends and updates its cache:

- group_query_attention: `com.microsoft.GroupQueryAttention`, which ONNX Runtime's CPU provider runs
  with a tree mask for one sequence only;
- tensor_scatter: the standard `TensorScatter` and `Attention` of opset 24, for any batch.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """How a model is exported for one place where it runs.

    Attributes:
        name: what `--target` calls it.
        attention: the form of attention and cache update for one sequence.
        batch_attention: the form for several sequences, a verify graph of its own; None where
            `attention` takes them.
        precisions: weight precisions on offer, the default first.
        opset: ONNX opset of the graphs.
        min_rows: see `TargetSpec`.
        prefill_chunk: tokens of one prefill step.
        default_tree: the tree for heads that come without one of their own.
        max_length: default limit on the sequence length, where the model allows more.
    """

    name: str
    attention: AttentionForm
    batch_attention: AttentionForm | None
    precisions: tuple[str, ...]
    opset: int
    min_rows: int
    prefill_chunk: int
    default_tree: str
    max_length: int


TARGETS = {
    "ort-cpu": Target(
        name="ort-cpu",
        attention="group_query_attention",
        batch_attention="tensor_scatter",
        precisions=("fp32",),
        opset=23,
        min_rows=2,
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


def checked_precision(target: Target, precision: str | None) -> str:
    """The precision to use; the target's default for None.

    Raises:
        ExportError: the target does not offer it.
    """
    if precision is None:
        return target.precisions[0]
    if precision not in target.precisions:
        raise ExportError(
            f"target {target.name} has no precision {precision!r}: "
            f"choose from {', '.join(target.precisions)}"
        )
    return precision
