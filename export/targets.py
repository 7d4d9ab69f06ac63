"""What differs between deployment targets: one row each."""

from dataclasses import dataclass, replace
from typing import Literal

from medusa_trt.errors import ExportError
from medusa_trt.export.weight_formats import BITS, Format, WeightFormat
from medusa_trt.runtime.engines.engine_record import Product
from medusa_trt.runtime.engines.operators import library_path, required_library

AttentionForm = Literal[
    "group_query_attention",
    "tensor_scatter",
    "tree_attention",
    "device_attention",
    "cuda_attention",
    "decomposed_attention",
]
"""How the verify graph attends and updates its cache:

- group_query_attention: `com.microsoft.GroupQueryAttention`, which ONNX Runtime's CPU provider runs
  with a tree mask for one sequence only;
- tensor_scatter: the standard `TensorScatter` and `Attention` of opset 24, for any batch;
- tree_attention: the operator library's own `TreeAttention`, for any batch;
- device_attention: the standard operators as TensorRT 10.15 and later take them, for any batch;
- cuda_attention: the same as ONNX Runtime's CUDA provider runs them without its host;
- decomposed_attention: the same with the operators of TensorRT 10.3.
"""


@dataclass(frozen=True, slots=True)
class AttentionForms:
    """Forms of attention that go together; see `Precision` for each."""

    one: AttentionForm
    batch: AttentionForm | None
    min_rows: int


MIXED = "mixed"
"""What a precision with a format for each weight is called."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """How the weights are stored, and what runs on them.

    Attributes:
        name: what `--precision` calls it.
        attention: the form of attention and cache update for one sequence.
        batch_attention: the form for several sequences, a verify graph of its own; None where
            `attention` takes them.
        min_rows: see `TargetSpec`.
        general: what takes the place of these three for a model with capped scores or short
            sliding windows; None where `attention` serves it too.
        layer_bits: bits of the layers' weights where the operator library multiplies; None where
            ONNX Runtime does.
        unembedding_bits: bits of the unembedding and the heads, likewise.
        dtype: what is computed in.
        weights: format of the layers' and the heads' weights behind `DequantizeLinear`; None
            leaves them in `dtype`.
    """

    name: str
    attention: AttentionForm
    batch_attention: AttentionForm | None = None
    min_rows: int = 1
    general: AttentionForms | None = None
    layer_bits: int | None = None
    unembedding_bits: int | None = None
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    weights: WeightFormat | None = None

    @property
    def cache_dtype(self) -> Literal["float32", "float16", "bfloat16"]:
        """Type of the KV cache: that of the computation, but for the library's own attention."""
        return "bfloat16" if self.attention == "tree_attention" else self.dtype

    @property
    def rounded_bits(self) -> tuple[int | None, int | None, int | None]:
        """Of the layers', the unembedding's and the heads' weights; None where they are whole."""
        if self.weights is not None:
            return BITS[self.weights], None, BITS[self.weights]
        return self.layer_bits, self.unembedding_bits, None if self.layer_bits is None else 8

    def for_attention(self, is_general: bool) -> "Precision":
        """The row for a model, by what `needs_general_attention` says of it."""
        if not is_general or self.general is None:
            return self
        forms = self.general
        return replace(
            self, attention=forms.one, batch_attention=forms.batch, min_rows=forms.min_rows
        )

    @property
    def on_device(self) -> bool:
        """Whether the graphs compute in one type and read their cache on a device."""
        return self.attention in ("device_attention", "cuda_attention", "decomposed_attention")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """How a model is exported for one place where it runs.

    Attributes:
        name: what `--target` calls it.
        precisions: weight precisions on offer, the default first.
        mixed: the precision of a quantization plan.
        formats: what a plan may give a weight; the last one leaves it as it is.
        candidates: those that `calibrate quantization` chooses from by default.
        opset: ONNX opset of the graphs.
        prefill_chunk: tokens of one prefill step.
        default_tree: the tree for heads that come without one of their own.
        max_length: default limit on the sequence length, where the model allows more.
        product: whose engines are built from the graphs by default; None where ONNX Runtime runs
            them.
        reduces_in: the type in which probabilities are added up for sampling.
    """

    name: str
    precisions: tuple[Precision, ...]
    mixed: Precision
    formats: tuple[Format, ...]
    candidates: tuple[Format, ...]
    opset: int
    prefill_chunk: int
    default_tree: str
    max_length: int
    product: Product | None = None
    reduces_in: Literal["float64", "int64"] = "float64"


def _device_precisions(attention: AttentionForm, *names: str) -> tuple[Precision, ...]:
    rows: dict[str, tuple[Literal["float16", "bfloat16"], WeightFormat | None]] = {
        "fp16": ("float16", None),
        "bf16": ("bfloat16", None),
        "int8": ("float16", "int8"),
        "int4": ("float16", "int4"),
        "fp8": ("float16", "fp8"),
    }
    return tuple(
        Precision(name=name, attention=attention, dtype=rows[name][0], weights=rows[name][1])
        for name in names
    )


_ORT_FORMS = AttentionForms("group_query_attention", "tensor_scatter", min_rows=2)

TARGETS = {
    "ort-cpu": Target(
        name="ort-cpu",
        precisions=(
            Precision(
                name="int8",
                attention="tree_attention",
                general=_ORT_FORMS,
                layer_bits=8,
                unembedding_bits=8,
            ),
            Precision(
                name="int4",
                attention="tree_attention",
                general=_ORT_FORMS,
                layer_bits=4,
                unembedding_bits=8,
            ),
            Precision(
                name="fp32",
                attention=_ORT_FORMS.one,
                batch_attention=_ORT_FORMS.batch,
                min_rows=_ORT_FORMS.min_rows,
            ),
        ),
        mixed=Precision(
            name=MIXED,
            attention="tree_attention",
            general=_ORT_FORMS,
            layer_bits=8,
            unembedding_bits=8,
        ),
        formats=("int4", "int8", "fp32"),
        candidates=("int4", "int8"),
        opset=23,
        prefill_chunk=128,
        default_tree="smollm2_135m_6",
        max_length=8192,
    ),
    "ort-cuda": Target(
        name="ort-cuda",
        precisions=_device_precisions("cuda_attention", "fp16", "bf16", "int4"),
        mixed=Precision(name=MIXED, attention="cuda_attention", dtype="float16", weights="int4"),
        formats=("int4", "fp16"),
        candidates=("int4", "fp16"),
        opset=23,
        prefill_chunk=512,
        default_tree="mc_sim_7b_63",
        max_length=4096,
    ),
    "tensorrt": Target(
        name="tensorrt",
        precisions=_device_precisions("device_attention", "fp16", "bf16", "int8", "int4", "fp8"),
        mixed=Precision(name=MIXED, attention="device_attention", dtype="float16", weights="int8"),
        formats=("int4", "int8", "fp8", "fp16"),
        candidates=("int4", "int8", "fp16"),
        opset=23,
        prefill_chunk=512,
        default_tree="mc_sim_7b_63",
        max_length=4096,
        product="tensorrt",
        reduces_in="int64",
    ),
    "tensorrt-rtx": Target(
        name="tensorrt-rtx",
        precisions=_device_precisions("device_attention", "fp16", "bf16", "int8", "int4", "fp8"),
        mixed=Precision(name=MIXED, attention="device_attention", dtype="float16", weights="int8"),
        formats=("int4", "int8", "fp8", "fp16"),
        candidates=("int4", "int8", "fp16"),
        opset=23,
        prefill_chunk=512,
        default_tree="mc_sim_7b_63",
        max_length=4096,
        product="tensorrt-rtx",
        reduces_in="int64",
    ),
    "tensorrt-jetson": Target(
        name="tensorrt-jetson",
        precisions=_device_precisions("decomposed_attention", "fp16", "int8", "int4"),
        mixed=Precision(
            name=MIXED, attention="decomposed_attention", dtype="float16", weights="int8"
        ),
        formats=("int4", "int8", "fp16"),
        candidates=("int4", "int8", "fp16"),
        opset=21,
        prefill_chunk=128,
        default_tree="smollm2_135m_16",
        max_length=2048,
        product="tensorrt",
        reduces_in="int64",
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
