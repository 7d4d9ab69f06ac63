"""What differs between deployment targets: one row each."""

from dataclasses import dataclass, replace
from typing import Literal

from medusa_trt.errors import ExportError
from medusa_trt.export.weight_formats import Format, WeightFormat
from medusa_trt.runtime.engines.engine_record import Product
from medusa_trt.runtime.engines.operators import find_library, require_library

MIXED = "mixed"
"""Name of the precision of an export with a quantization plan."""

ReduceForm = Literal["operator", "float64", "int64"]
"""How a reduce graph adds up probabilities for sampling: see `graphs/reduce_forms.py`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """How the weights are stored, and what is computed in.

    Attributes:
        name: what `--precision` calls it.
        dtype: type of the computation.
        layers: format of the layers' weights; None leaves them in `dtype`.
        unembedding: format of the unembedding, likewise.
        heads: format of the heads' weights, likewise.
        uses_library: whether the operator library multiplies by the rounded weights; otherwise
            they are behind `DequantizeLinear`.
    """

    name: str
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    layers: WeightFormat | None = None
    unembedding: WeightFormat | None = None
    heads: WeightFormat | None = None
    uses_library: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """How a model is exported for one place where it runs.

    Attributes:
        name: what `--target` calls it.
        precisions: weight precisions on offer, the default first.
        mixed: the precision of a quantization plan.
        attention: forms of attention by their names in `modeling/attention_forms.py`; the first
            one that serves model and precision is used.
        formats: what a plan may give a weight; the last one leaves it as it is.
        candidates: the formats that `calibrate quantization` chooses from by default.
        opset: ONNX opset of the graphs.
        prefill_chunk: tokens of one prefill step.
        default_tree: the tree for heads that come without one.
        max_length: default limit on the sequence length, where the model allows more.
        product: whose engines are built from the graphs by default; None where ONNX Runtime runs
            them.
        reduce: form of the reduce graph, unless the operator library is used.
    """

    name: str
    precisions: tuple[Precision, ...]
    mixed: Precision
    attention: tuple[str, ...]
    formats: tuple[Format, ...]
    candidates: tuple[Format, ...]
    opset: int = 23
    prefill_chunk: int
    default_tree: str
    max_length: int
    product: Product | None = None
    reduce: ReduceForm = "float64"

    def reduce_form(self, precision: Precision) -> ReduceForm:
        """Form of the reduce graph of an export in this precision."""
        return "operator" if precision.uses_library else self.reduce


def _make_library_precision(name: str, layers: WeightFormat) -> Precision:
    return Precision(name=name, layers=layers, unembedding="int8", heads="int8", uses_library=True)


def _make_device_precision(name: str, format_: WeightFormat | None) -> Precision:
    """A device multiplies by the unembedding in the type of the computation."""
    return Precision(name=name, dtype="float16", layers=format_, heads=format_)


_FP16 = _make_device_precision("fp16", None)
_BF16 = Precision(name="bf16", dtype="bfloat16")
_INT8 = _make_device_precision("int8", "int8")
_INT4 = _make_device_precision("int4", "int4")
_FP8 = _make_device_precision("fp8", "fp8")

_TENSORRT = Target(
    name="tensorrt",
    precisions=(_FP16, _BF16, _INT8, _INT4, _FP8),
    mixed=_make_device_precision(MIXED, "int8"),
    attention=("device_attention",),
    formats=("int4", "int8", "fp8", "fp16"),
    candidates=("int4", "int8", "fp16"),
    prefill_chunk=512,
    default_tree="mc_sim_7b_63",
    max_length=4096,
    product="tensorrt",
    reduce="int64",
)

_ROWS = (
    Target(
        name="ort-cpu",
        precisions=(
            _make_library_precision("int8", "int8"),
            _make_library_precision("int4", "int4"),
            Precision(name="fp32"),
        ),
        mixed=_make_library_precision(MIXED, "int8"),
        attention=("tree_attention", "group_query_attention", "tensor_scatter"),
        formats=("int4", "int8", "fp32"),
        candidates=("int4", "int8"),
        prefill_chunk=128,
        default_tree="smollm2_135m_6",
        max_length=8192,
    ),
    Target(
        name="ort-cuda",
        precisions=(_FP16, _BF16, _INT4),
        mixed=_make_device_precision(MIXED, "int4"),
        attention=("cuda_attention",),
        formats=("int4", "fp16"),
        candidates=("int4", "fp16"),
        prefill_chunk=512,
        default_tree="mc_sim_7b_63",
        max_length=4096,
    ),
    _TENSORRT,
    replace(_TENSORRT, name="tensorrt-rtx", product="tensorrt-rtx"),
    Target(
        name="tensorrt-jetson",
        precisions=(_FP16, _INT8, _INT4),
        mixed=_make_device_precision(MIXED, "int8"),
        attention=("decomposed_attention",),
        formats=("int4", "int8", "fp16"),
        candidates=("int4", "int8", "fp16"),
        opset=21,
        prefill_chunk=128,
        default_tree="smollm2_135m_16",
        max_length=2048,
        product="tensorrt",
        reduce="int64",
    ),
)

TARGETS = {target.name: target for target in _ROWS}


def target_from_name(name: str) -> Target:
    """Looks a target up.

    Raises:
        ExportError: there is no such target.
    """
    if name not in TARGETS:
        raise ExportError(f"unknown target {name!r}: choose from {', '.join(sorted(TARGETS))}")
    return TARGETS[name]


def precision_from_name(target: Target, name: str | None) -> Precision:
    """Looks a precision up.

    Args:
        target: the target that offers it.
        name: its name; None for the target's first one that this machine can run.

    Raises:
        ExportError: the target does not offer it.
        EngineError: it needs the operator library, which was not built.
    """
    has_library = find_library() is not None
    for precision in target.precisions:
        if name is None and (has_library or not precision.uses_library):
            return precision
        if precision.name == name:
            if precision.uses_library:
                require_library()
            return precision
    raise ExportError(
        f"target {target.name} has no precision {name!r}: "
        f"choose from {', '.join(precision.name for precision in target.precisions)}"
    )


def describe_fallback(target: Target, precision: Precision, name: str | None) -> str | None:
    """Says that an export whose user named no precision has another one than the default."""
    default = target.precisions[0]
    if name is not None or precision is default:
        return None
    return (
        f"the operator library was not built, so this is an export in {precision.name} instead of "
        f"{default.name}: for {default.name} install a C++ compiler and medusa-trt again"
    )
