"""A format for each weight of a model, as `calibrate quantization` finds it for an export."""

from collections.abc import Mapping
from pathlib import Path

import msgspec
from transformers import PreTrainedModel

from medusa_trt.errors import ExportError
from medusa_trt.export.quantization.quantize_weights import find_largest_block_size
from medusa_trt.export.targets import Precision, Target
from medusa_trt.export.weight_formats import BITS, WeightFormat, is_rounded
from medusa_trt.export.weights.lazy_tensor import LazyTensor
from medusa_trt.files import join_names
from medusa_trt.runtime.engines.operators import require_library

FORMAT_VERSION = 1
PLAN_FILE = "quantization.json"

_REMEDY = "make one for this model with medusa-trt calibrate quantization"
_WHOLE_ROWS = 2
"""From two rows on, ONNX Runtime's products do not depend on the number of rows."""


class PlannedSite(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Weights that are multiplied as one, by their names in the model, and their format."""

    name: str
    format: str
    weights: tuple[str, ...]


class ValuesFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file beside a plan that has the rounded values, and the hash of its content."""

    file: str
    sha256: str


class QuantizationPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The content of `quantization.json`.

    Attributes:
        format_version: version of this form.
        model: name of the model that it was made for.
        target: name of the target that it was made for.
        values: where the rounded values are, of a plan whose rounding is compensated; an export
            rounds to nearest without.
        sites: the formats.
    """

    format_version: int = FORMAT_VERSION
    model: str
    target: str
    values: ValuesFile | msgspec.UnsetType = msgspec.UNSET
    sites: tuple[PlannedSite, ...]

    def to_json(self) -> bytes:
        """Writes the plan as JSON with a site on each line."""
        head = msgspec.structs.replace(self, sites=())
        text = msgspec.json.format(msgspec.json.encode(head), indent=2)
        lines = b",\n".join(b"    " + msgspec.json.encode(site) for site in self.sites)
        return text.removesuffix(b"[]\n}") + b"[\n" + lines + b"\n  ]\n}\n"


def plan_from_file(path: Path) -> QuantizationPlan:
    """Reads a plan.

    Raises:
        ExportError: it cannot be read, or is damaged or of another release.
    """
    try:
        plan = msgspec.json.decode(path.read_bytes(), type=QuantizationPlan)
    except OSError as error:
        raise ExportError(
            f"cannot read the quantization plan {path}: {error.strerror}; {_REMEDY}"
        ) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ExportError(
            f"the quantization plan {path} is damaged ({error}): {_REMEDY}"
        ) from error
    if plan.format_version != FORMAT_VERSION:
        raise ExportError(
            f"{path} has format version {plan.format_version}, this release reads "
            f"{FORMAT_VERSION}: {_REMEDY}"
        )
    return plan


def precision_from_plan(target: Target, plan: QuantizationPlan) -> Precision:
    """Finds the target's precision for a plan.

    Raises:
        ExportError: the plan was made for another target, or has a format that it lacks.
        EngineError: it needs the operator library, which was not built.
    """
    formats = {site.format for site in plan.sites}
    if unknown := formats - set(target.formats):
        raise ExportError(
            f"the quantization plan has weights in {join_names(unknown)}, target {target.name} "
            f"takes {', '.join(target.formats)}: make a plan for it with medusa-trt calibrate "
            f"quantization --target {target.name}"
        )
    if target.mixed.uses_library:
        require_library()
    return target.mixed


def min_rows_from_plan(target: Target, plan: QuantizationPlan) -> int:
    """Finds the smallest number of rows from which on products do not depend on their number."""
    is_rounded_whole = all(is_rounded(site.format) for site in plan.sites)
    return 1 if is_rounded_whole or not target.mixed.uses_library else _WHOLE_ROWS


class PlannedFormats:
    """The format of each matrix of a traced graph, by the parameters that it is made of.

    A pass may raise errors of onnx-ir only, so what does not fit is collected until `check`.
    """

    def __init__(self, plan: QuantizationPlan, model: PreTrainedModel, prefix: str) -> None:
        """Takes a plan for a traced model, whose parameters have this prefix in the graph.

        Raises:
            ExportError: the model lacks what the plan names.
        """
        self._plan, self._prefix = plan, prefix
        # Tied weights are one parameter with several names.
        self._ids = {
            name: id(parameter)
            for name, parameter in model.named_parameters(remove_duplicate=False)
        }
        self._sites: dict[int, PlannedSite] = {}
        for site in plan.sites:
            missing = [name for name in site.weights if name not in self._ids]
            if missing:
                raise ExportError(
                    f"the quantization plan names {site.name} ({join_names(missing)}), which "
                    f"the model lacks: {_REMEDY}"
                )
            self._sites |= {self._ids[name]: site for name in site.weights}
        self._met: set[str] = set()
        self._problems: list[str] = []

    def __call__(self, weight: LazyTensor) -> WeightFormat | None:
        """Returns the planned format of an (inputs, outputs) matrix."""
        names = [source.removeprefix(self._prefix) for source in weight.sources]
        sites = {self._sites.get(self._ids.get(name, -1)) for name in names}
        formats = {site.format for site in sites if site is not None}
        if None in sites or len(formats) != 1:
            planned = f"{len(formats)} formats" if formats else "no format"
            self._problems.append(f"has {planned} for {join_names(names)}, a product of the graph")
            return None
        self._met |= {site.name for site in sites if site is not None}
        format_ = formats.pop()
        if format_ == "int4" and find_largest_block_size(weight.sizes[0]) is None:
            self._problems.append(f"has int4 for {join_names(names)}, whose inputs fill no blocks")
        return format_ if is_rounded(format_) else None

    def check(self) -> None:
        """Compares plan and graph, once the pass has run.

        Raises:
            ExportError: one has a matrix that the other lacks, which is named.
        """
        unmet = [site.name for site in self._plan.sites if site.name not in self._met]
        if unmet:
            self._problems.append(f"names {join_names(unmet)}, which the graph lacks")
        if self._problems:
            raise ExportError(f"the quantization plan {self._problems[0]}: {_REMEDY}")


def bits_from_plan(plan: QuantizationPlan, whole_bits: int) -> Mapping[str, int]:
    """Lists the bits per weight with scales, by parameter name, to estimate sizes."""
    return {
        name: BITS[site.format] + 1 if is_rounded(site.format) else whole_bits
        for site in plan.sites
        for name in site.weights
    }
