"""The manifest of a bundle: its sizes, graphs and files, and its comparison with the model."""

from dataclasses import replace
from typing import Annotated, Literal

import msgspec

from medusa_trt.errors import BundleError
from medusa_trt.runtime.options import POSTERIOR_ALPHA, POSTERIOR_THRESHOLD, GenerationOptions
from medusa_trt.runtime.tensors import ROOT_IDS
from medusa_trt.tree_configs import MedusaTree

FORMAT_VERSION = 1

CACHE_ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
"""Byte size of one cache element, by ONNX type."""

Count = Annotated[int, msgspec.Meta(ge=1)]


class TensorSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An input or output of a graph. A dimension is a size, or the name of a free dimension."""

    name: str
    dtype: str
    shape: list[int | str]


class GraphSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One ONNX file and its interface."""

    file: str
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]


class ModelSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Sizes of the backbone. `max_length` is in positions."""

    name: str
    architecture: str
    num_layers: Count
    hidden_size: Count
    vocab_size: Count
    num_kv_heads: Count
    head_dim: Count
    max_length: Count
    eos_token_ids: list[int]


class HeadsSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Sizes of the Medusa heads. Each head proposes `top_k` candidates."""

    num_heads: Count
    num_layers: Count
    top_k: Count
    draft_vocab_size: Count


class TargetSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The target that the graphs were exported for.

    Attributes:
        name: a row of `export/targets.py`.
        precision: format of the weights.
        opset: ONNX opset of the graphs.
        cache_dtype: type of the KV cache.
        min_rows: smallest number of nodes for which a step uses the same kernels as for a tree;
            plain decoding pads its steps to it, so its tokens equal Medusa's.
        prefill_chunk: tokens of one prefill step.
        operator_library: whether the graphs use the operators of `runtime/engines/operators.py`.
        cache_in_place: whether the verify graph's cache outputs may be bound to the memory of its
            cache inputs.
    """

    name: str
    precision: str
    opset: int
    cache_dtype: Literal["float32", "float16", "bfloat16"]
    min_rows: Count
    prefill_chunk: Count
    operator_library: bool
    cache_in_place: bool = True


class Thresholds(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """ε (`posterior_threshold`) and δ (`posterior_alpha`) of typical acceptance."""

    posterior_threshold: Annotated[float, msgspec.Meta(ge=0, le=1)]
    posterior_alpha: Annotated[float, msgspec.Meta(ge=0, le=1)]

    def __str__(self) -> str:
        return f"ε {self.posterior_threshold:.3g}, δ {self.posterior_alpha:.3g}"


class TypicalSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `calibrate threshold` recommends at a temperature; without thresholds the sampler."""

    temperature: float
    thresholds: Thresholds | None


class Agreement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Comparison of the bundle with the Hugging Face model.

    Attributes:
        num_positions: number of positions that were compared.
        max_logit_difference: largest absolute difference of a logit.
        relative_error: root mean square of the differences, divided by that of the logits; the
            mean of each position is subtracted first.
        argmax_agreement: share of positions with the same argmax.
        kl_divergence: mean of KL(model, bundle), in nats.
    """

    num_positions: int
    max_logit_difference: float
    relative_error: float
    argmax_agreement: float
    kl_divergence: float


class FileSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Size and hash of one file of the bundle."""

    size_bytes: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The content of `manifest.json`; without heads a bundle decodes plainly and by lookup.

    `typical` is empty before `calibrate threshold`, and has one entry for a temperature.
    """

    format_version: int
    model: ModelSpec
    heads: HeadsSpec | None
    target: TargetSpec
    tree_name: str
    graphs: dict[str, GraphSpec]
    verified: dict[str, Agreement]
    versions: dict[str, str]
    files: dict[str, FileSpec]
    typical: list[TypicalSpec] = []

    @property
    def heads_read_root(self) -> bool:
        """Whether the heads graph reads the root token as well as the hidden state."""
        heads = self.graphs.get("heads")
        return heads is not None and any(spec.name == ROOT_IDS for spec in heads.inputs)

    def require_heads(self, purpose: str) -> HeadsSpec:
        """Returns the sizes of the heads; `purpose` names what needs them, in the message.

        Raises:
            BundleError: the bundle has no heads.
        """
        if self.heads is None:
            raise BundleError(
                f"{purpose} needs Medusa heads, and this bundle of {self.model.name} has none: "
                "export the model with --heads"
            )
        return self.heads

    def check_tree(self, tree: MedusaTree) -> None:
        """Checks that the heads can fill a tree; without heads, that prompt lookup can.

        Raises:
            TreeError: the tree is too deep, or too wide.
        """
        if self.heads is not None:
            tree.check(self.heads.num_heads, self.heads.top_k)
        else:
            tree.check_without_heads()

    def fill_thresholds(self, options: GenerationOptions) -> GenerationOptions:
        """Sets ε and δ of typical acceptance, where the user has set none.

        They are those recommended at the nearest temperature, or else the Medusa paper's.
        """
        spec = self._nearest_spec(options)
        defaults = (spec and spec.thresholds) or Thresholds(POSTERIOR_THRESHOLD, POSTERIOR_ALPHA)
        threshold, alpha = options.posterior_threshold, options.posterior_alpha
        return replace(
            options,
            posterior_threshold=defaults.posterior_threshold if threshold is None else threshold,
            posterior_alpha=defaults.posterior_alpha if alpha is None else alpha,
        )

    def describe_thresholds(self, options: GenerationOptions) -> str | None:
        """Says which ε and δ a reply gets that the user has not set; None if it gets none."""
        filled = self.fill_thresholds(options)
        if options.rule != "typical" or filled == options:
            return None
        assert filled.posterior_threshold is not None and filled.posterior_alpha is not None
        text = (
            f"typical acceptance, {Thresholds(filled.posterior_threshold, filled.posterior_alpha)}"
        )
        spec = self._nearest_spec(options)
        if spec is None:
            return f"{text}: calibrate threshold can find better values"
        temperature = f"temperature {spec.temperature:g}"
        if spec.thresholds is None:
            return f"{text}: calibrate threshold recommends acceptance sample at {temperature}"
        signs = {"ε": options.posterior_threshold, "δ": options.posterior_alpha}
        calibrated = " and ".join(sign for sign, given in signs.items() if given is None)
        return f"{text}; {calibrated} calibrated at {temperature}"

    def describe_typical(self) -> str:
        """Lists what is recommended at each temperature; empty before `calibrate threshold`."""
        return "; ".join(
            f"{spec.thresholds or 'acceptance sample'} at temperature {spec.temperature:g}"
            for spec in self.typical
        )

    def _nearest_spec(self, options: GenerationOptions) -> TypicalSpec | None:
        temperature = options.sampling.temperature
        return min(self.typical, key=lambda s: abs(s.temperature - temperature), default=None)

    def to_json(self) -> bytes:
        """Encodes the manifest as indented JSON."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2)


class _Versioned(msgspec.Struct):
    format_version: int


def manifest_from_json(data: bytes, source: str) -> Manifest:
    """Reads a manifest.

    Args:
        data: the JSON text.
        source: name of the file in error messages.

    Raises:
        BundleError: the text is not JSON, has another format version, or a field is missing,
            unknown or of the wrong type.
    """
    try:
        version = msgspec.json.decode(data, type=_Versioned).format_version
        if version != FORMAT_VERSION:
            raise BundleError(
                f"{source} has format version {version}, this release reads {FORMAT_VERSION}: "
                "export the model again"
            )
        return msgspec.json.decode(data, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"{source} is damaged ({error}): export the model again") from error
