"""Costs of formats in quality: read from the logs, or measured and logged."""

import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
from transformers import PreTrainedModel

from medusa_trt.calibration.quantization.compensated_model import (
    compensate_model,
    list_compensated_sites,
)
from medusa_trt.calibration.quantization.estimate import NUM_SAMPLES, SiteEstimator, SiteKls
from medusa_trt.calibration.quantization.inputs import HeadsMeter
from medusa_trt.calibration.quantization.meter import (
    Formats,
    Matrices,
    QuantizationMeter,
    Text,
)
from medusa_trt.calibration.records import RecordLog
from medusa_trt.export.quantization.rounding import Rounding
from medusa_trt.export.quantization.sites import Site
from medusa_trt.export.weight_formats import Format, WeightFormat, is_rounded

SITES_FILE = "quantization_sites.jsonl"
PLANS_FILE = "quantization_plans.jsonl"

_PARAMETER_SAMPLES = 64


class SitesRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The estimated effect of rounding each site alone, on one text.

    Attributes:
        basis: digest of the model, the texts and the rounding.
        text: index of the text.
        num_samples: number of draws.
        kls: sums of KL divergences over the text's positions, in nats.
    """

    basis: str
    text: int
    num_samples: int
    kls: SiteKls


class PlanRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The measured effect of rounding many sites at once, on all texts.

    Attributes:
        basis: see `SitesRecord`.
        drafter: digest of the heads and the tree.
        formats: formats of the rounded sites, by site.
        kl: KL divergence from the unquantized model, nats per token.
        agreement: share of next tokens that stay the same.
        accept_length: tokens per step that heads and tree add on the replies.
    """

    basis: str
    drafter: str
    formats: dict[str, str]
    kl: float
    agreement: float
    accept_length: float


class QuantizationCosts:
    """Costs of one model's formats on some texts."""

    def __init__(
        self,
        model: PreTrainedModel,
        sites: Sequence[Site],
        rounding: Rounding,
        formats: Sequence[WeightFormat],
        texts: Sequence[Text],
        folder: Path,
        heads_meter: HeadsMeter,
    ) -> None:
        """Reads the logs in `folder`, which get a record for each text and for each plan.

        The unquantized model, its weights in memory as float32, runs only to measure something.

        Raises:
            CalibrationError: a log is damaged.
        """
        self._model, self._sites, self._rounding = model, sites, rounding
        self._formats, self._texts, self._heads_meter = tuple(formats), texts, heads_meter
        self._sites_log = RecordLog(folder / SITES_FILE, SitesRecord)
        self._plans_log = RecordLog(folder / PLANS_FILE, PlanRecord)
        self._basis = _basis(model, texts, rounding)
        self._meter: QuantizationMeter | None = None
        self._estimator: SiteEstimator | None = None

    @property
    def num_positions(self) -> int:
        """Tokens that are predicted."""
        return sum(len(text.token_ids) for text in self._texts)

    def list_missing_texts(self) -> list[int]:
        """Indices of the texts on which a format is not estimated yet."""
        return [
            index
            for index in range(len(self._texts))
            if len(self._find_known(index)) < len(self._formats)
        ]

    def estimate_text(self, index: int) -> None:
        """Estimates all sites on a text, and logs the estimates."""
        if self._estimator is None:
            self._estimator = SiteEstimator(self._model, self._sites, self._rounding, self._formats)
        kls = self._estimator.estimate(self._texts[index], seed=index)
        self._sites_log.append(
            SitesRecord(basis=self._basis, text=index, num_samples=NUM_SAMPLES, kls=kls)
        )

    def compute_site_kls(self, format_: WeightFormat) -> dict[str, float]:
        """KL divergence that each site causes alone, nats per token, on the texts that are done.

        It is empty if no text is done.
        """
        done = [self._find_known(index).get(format_) for index in range(len(self._texts))]
        lengths = [len(text.token_ids) for text in self._texts]
        pairs = [(kls, n) for kls, n in zip(done, lengths, strict=True) if kls is not None]
        num_positions = sum(n for _, n in pairs)
        if not pairs:
            return {}
        return {
            site.name: sum(kls[site.name] for kls, _ in pairs) / num_positions
            for site in self._sites
        }

    def find_plan(self, formats: Formats) -> PlanRecord | None:
        """The record of a plan, or None if it was not measured yet."""
        key = (self._basis, self._heads_meter.digest, _select_rounded(formats))
        records = (r for r in self._plans_log if (r.basis, r.drafter, r.formats) == key)
        return next(records, None)

    def measure_plan(self, formats: Formats) -> PlanRecord:
        """Measures a plan, with the heads on top, and logs its record."""
        record = self.measure_matrices(formats, None)
        self._plans_log.append(record)
        return record

    def measure_matrices(self, formats: Formats, matrices: Matrices | None) -> PlanRecord:
        """Measures a plan some of whose matrices are rounded already, without logging it."""
        rounded = _select_rounded(formats)
        change = self._open_meter().measure(rounded, matrices)
        return PlanRecord(
            basis=self._basis,
            drafter=self._heads_meter.digest,
            formats=dict(rounded),
            kl=change.kl,
            agreement=change.agreement,
            accept_length=self._heads_meter.measure_accept_length(change.hidden),
        )

    def list_compensated(self, formats: Formats) -> list[Site]:
        """Lists the sites of a plan that `compensate` rounds."""
        self._restore()
        return list_compensated_sites(self._model, self._sites, self._rounding, formats)

    def compensate(
        self, formats: Formats, texts: Sequence[Text], advance: Callable[[], None]
    ) -> Matrices:
        """Rounds a plan's matrices so that they make up for each other's errors on some texts."""
        self._restore()
        return compensate_model(self._model, self._sites, self._rounding, formats, texts, advance)

    def digest_compensation(self, formats: Formats, texts: Sequence[Text]) -> str:
        """Hashes all that `compensate` makes its matrices from."""
        parts = [(text.prompt_ids, text.token_ids) for text in texts]
        return hashlib.sha256(
            repr((self._basis, parts, sorted(formats.items()))).encode()
        ).hexdigest()

    def estimate_s(self, num_texts: int, num_plans: int) -> float:
        """Estimates the seconds that some texts and plans take."""
        start = time.perf_counter()
        self._open_meter()
        run_s = time.perf_counter() - start
        rounding_s = sum(map(self._rounding_s, self._formats))
        # A gradient with respect to the outputs costs about as much as computing them.
        texts_s = num_texts / len(self._texts) * run_s * (2 + NUM_SAMPLES)
        # Most plans differ from the one before in a few matrices: only these are rounded again.
        return texts_s + 2 * rounding_s + num_plans * run_s

    def _restore(self) -> None:
        """Gives the model its unrounded matrices back, if a plan was measured on it."""
        if self._meter is not None:
            self._meter.restore()

    def _open_meter(self) -> QuantizationMeter:
        if self._meter is None:
            self._meter = QuantizationMeter(self._model, self._sites, self._rounding, self._texts)
        return self._meter

    def _find_known(self, index: int) -> SiteKls:
        """Logged KL divergences of a text, by format and site."""
        logged: SiteKls = {}
        for record in self._sites_log:
            if (record.basis, record.text) == (self._basis, index):
                logged |= {name: kls for name, kls in record.kls.items() if name in self._formats}
        return logged

    def _rounding_s(self, format_: WeightFormat) -> float:
        """Estimates the seconds to round all matrices, from one of them."""
        site = self._sites[0]
        weight = self._model.get_parameter(site.weights[0]).detach().numpy().T
        start = time.perf_counter()
        self._rounding.round_weight(weight, format_)
        per_weight_s = (time.perf_counter() - start) / weight.size
        return per_weight_s * sum(site.num_weights for site in self._sites)


def _select_rounded(formats: Formats) -> dict[str, Format]:
    return {name: format_ for name, format_ in formats.items() if is_rounded(format_)}


def _basis(model: PreTrainedModel, texts: Sequence[Text], rounding: Rounding) -> str:
    """SHA-256 of the texts, the kind of rounding, and some numbers of each parameter."""
    digest = hashlib.sha256(type(rounding).__name__.encode())
    digest.update(repr([(text.prompt_ids, text.token_ids) for text in texts]).encode())
    for name, parameter in model.named_parameters():
        values = parameter.detach().flatten()
        digest.update(f"{name} {tuple(parameter.shape)}".encode())
        digest.update(values[:: max(1, len(values) // _PARAMETER_SAMPLES)].numpy().tobytes())
    return digest.hexdigest()
