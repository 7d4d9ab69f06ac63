"""Finds a format for each matrix of a model: estimates each one alone, then measures plans."""

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import torch

from medusa_trt.calibration.options import QuantizationOptions, ReplySettings
from medusa_trt.calibration.origin import Origin
from medusa_trt.calibration.progress import Progress
from medusa_trt.calibration.prompts import BenchPrompt
from medusa_trt.calibration.quantization.costs import PlanRecord, QuantizationCosts
from medusa_trt.calibration.quantization.frontier import Frontier, Option, frontier_from_options
from medusa_trt.calibration.quantization.inputs import HeadsMeter, texts_from_records
from medusa_trt.calibration.quantization.meter import Formats, Matrices, Text, count_tokens
from medusa_trt.calibration.quantization.plans import (
    MAX_TRIES,
    count_plan_bytes,
    find_best_plan,
    formats_from_names,
    list_site_options,
    make_fixed_plans,
)
from medusa_trt.calibration.quantization.section import (
    COMPENSATED,
    MODELOPT_FILE,
    PLAN,
    QUANTIZATION_PLAN_FILE,
    FormatCost,
    FrontierPoint,
    PlanResult,
    QuantizationSection,
    SiteCosts,
    advice_from_plans,
)
from medusa_trt.calibration.trees.head_ranks import RankRecord
from medusa_trt.errors import CalibrationError
from medusa_trt.export.models.base_model import BaseModel
from medusa_trt.export.quantization.modelopt import arguments_from_plan
from medusa_trt.export.quantization.plan import PlannedSite, QuantizationPlan, ValuesFile
from medusa_trt.export.quantization.rounding import find_rounding
from medusa_trt.export.quantization.sites import Site, sites_from_model
from medusa_trt.export.quantization.stored_values import (
    VALUES_FILE,
    describe_file,
    digest_weight,
    read_values,
    save_values,
)
from medusa_trt.export.targets import target_from_name
from medusa_trt.export.weight_formats import Format, is_rounded
from medusa_trt.files import replace_file
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.session import MedusaSession

_FRONTIER_POINTS = 200


class QuantizationRun:
    """One search for a plan: measures what is missing and makes the report's section."""

    def __init__(
        self,
        base: BaseModel,
        texts: Sequence[Text],
        folder: Path,
        heads_meter: HeadsMeter,
        options: QuantizationOptions,
        target: str,
        compensation_texts: Sequence[Text] = (),
    ) -> None:
        """Finds the sites of the unquantized model, without measuring anything.

        Logs are in `folder`. The plan is for `target`, unless the options name another one.
        Compensated rounding is fitted to `compensation_texts`.

        Raises:
            ExportError: there is no such target.
            CalibrationError: the target lacks a format, or the precision.
        """
        self._folder, self._compensation_texts = folder, compensation_texts
        self._target = target_from_name(options.target or target)
        self._formats = formats_from_names(self._target, options.formats)
        self._base, self._texts, self._options = base, texts, options
        self._rounding = find_rounding(self._target)
        self._sites = sites_from_model(base.model)
        self._sizes = {
            site.name: list_site_options(site, self._target, self._rounding, self._formats)
            for site in self._sites
        }
        rounded = [format_ for format_ in self._formats if is_rounded(format_)]
        self._costs = QuantizationCosts(
            base.model, self._sites, self._rounding, rounded, texts, folder, heads_meter
        )
        self._fixed = make_fixed_plans(self._sites, self._target, self._rounding, self._formats)
        self._refuse_precision()
        is_search = options.precision is None
        self._missing = self._costs.list_missing_texts() if is_search else []
        self._num_plans = len(self._fixed) + MAX_TRIES if is_search else 1
        self.progress = Progress(len(self._missing) + self._num_plans, "measurements")
        self._is_announced = False
        self._kls = self._read_known_kls()
        self._frontier: Frontier | None = None
        self._plan: dict[str, Format] = {}
        self._values: ValuesFile | msgspec.UnsetType = msgspec.UNSET
        self._results: list[PlanResult] = []

    def measure(self) -> None:
        """Searches a plan, if no precision is given, and rounds it with compensation if wanted.

        Raises:
            KeyboardInterrupt: on Ctrl-C; finished measurements are kept.
            CalibrationError: no plan keeps to the budget.
        """
        precision = self._options.precision
        plan = self._search() if precision is None else self._fixed[precision]
        self._results.append(self._result(PLAN, plan))
        if self._options.compensate:
            self._results.append(self._compensate(plan))
        self._plan = plan

    def save_plan(self, folder: Path) -> None:
        """Writes the plan if there is one: for an export, and for ModelOpt if that can follow it.

        Raises:
            MedusaError: a file cannot be written.
        """
        if not self._plan:
            return
        plan = QuantizationPlan(
            model=self._base.source.name,
            target=self._target.name,
            values=self._values,
            sites=tuple(
                PlannedSite(site.name, self._plan[site.name], site.weights) for site in self._sites
            ),
        )
        with replace_file(folder / QUANTIZATION_PLAN_FILE) as temporary:
            temporary.write_bytes(plan.to_json())
        arguments = None if self._target.mixed.uses_library else arguments_from_plan(plan)
        if arguments is None:
            (folder / MODELOPT_FILE).unlink(missing_ok=True)
            return
        with replace_file(folder / MODELOPT_FILE) as temporary:
            temporary.write_bytes(msgspec.json.format(msgspec.json.encode(arguments), indent=2))

    def make_section(self, origin: Origin, settings: ReplySettings) -> QuantizationSection:
        """Makes the report's section of what was measured until now."""
        self._kls = self._read_known_kls()
        points = []
        if self._frontier is not None:
            indices = np.linspace(0, len(self._frontier) - 1, _FRONTIER_POINTS).round().astype(int)
            points = [
                FrontierPoint(
                    size_bytes=int(self._frontier.sizes[index]),
                    predicted_kl=float(self._frontier.kls[index]),
                )
                for index in dict.fromkeys(indices.tolist())
            ]
        return QuantizationSection(
            origin=origin,
            settings=settings,
            options=self._options,
            model=self._base.source.name,
            target=self._target.name,
            num_replies=len(self._texts),
            num_positions=sum(len(text.token_ids) for text in self._texts),
            sites=tuple(map(self._site_costs, self._sites)),
            frontier=tuple(points),
            plans=tuple(self._results),
            advice=advice_from_plans(self._results),
        )

    def _search(self) -> dict[str, Format]:
        """Estimates every site alone, then measures the fixed plans and the best ones."""
        for index in self._missing:
            self._announce()
            self._costs.estimate_text(index)
            self.progress.advance()
        self._kls = self._read_known_kls()
        options = {
            name: [
                Option(format_, size, self._kl(name, format_)) for format_, size in sizes.items()
            ]
            for name, sizes in self._sizes.items()
        }
        self._frontier = frontier_from_options(options)
        for name, formats in self._fixed.items():
            self._results.append(self._result(name, formats))
        return find_best_plan(
            self._frontier, self._options, lambda formats: self._measure(formats).kl
        )

    def _refuse_precision(self) -> None:
        wanted = self._options.precision
        precisions = [row.name for row in self._target.precisions if row.name in self._fixed]
        if wanted is not None and wanted not in precisions:
            raise CalibrationError(
                f"--precision is {wanted}: with formats {', '.join(self._formats)} target "
                f"{self._target.name} has {', '.join(precisions)}"
            )

    def _compensate(self, plan: dict[str, Format]) -> PlanResult:
        """Rounds a plan's matrices with compensation into a file, unless it is there already."""
        path = self._folder / VALUES_FILE
        basis = self._costs.digest_compensation(plan, self._compensation_texts)
        matrices = read_values(path, basis) or self._make_values(path, plan, basis)
        self._values = describe_file(path)
        record = self._costs.measure_matrices(plan, matrices)
        result = self._make_result(COMPENSATED, plan, record)
        return replace(result, predicted_kl=None)

    def _make_values(self, path: Path, plan: dict[str, Format], basis: str) -> Matrices:
        sites, texts = self._costs.list_compensated(plan), self._compensation_texts
        print(
            f"compensated rounding on {sum(map(count_tokens, texts)):,} tokens of {len(texts)} "
            "replies with their prompts",
            file=sys.stderr,
        )
        progress = Progress(len(sites), "groups of matrices")
        try:
            matrices = self._costs.compensate(plan, texts, progress.advance)
        finally:
            progress.end()
        formats = {name: plan[site.name] for site in sites for name in site.weights}
        weights = self._base.weights
        digests = {name: digest_weight(weights[name].stored()) for name in matrices}
        save_values(path, matrices, formats, digests, basis)
        return matrices

    def _announce(self) -> None:
        """Prints how long the work will take, before the first measurement."""
        if not self._is_announced:
            self._is_announced = True
            print("running the unquantized model", file=sys.stderr)
            self.progress.announce(self._costs.estimate_s(len(self._missing), self._num_plans))

    def _read_known_kls(self) -> dict[Format, dict[str, float]]:
        """KL divergence that each site causes alone, by format and site."""
        rounded = [format_ for format_ in self._formats if is_rounded(format_)]
        return {format_: self._costs.compute_site_kls(format_) for format_ in rounded}

    def _predict_kl(self, formats: Formats) -> float | None:
        """Sums what the sites cause alone; None where that was not estimated."""
        if self._options.precision is not None:
            return None
        return sum(self._kl(site, format_) for site, format_ in formats.items())

    def _kl(self, site: str, format_: Format) -> float:
        return self._kls[format_][site] if is_rounded(format_) else 0.0

    def _measure(self, formats: Formats) -> PlanRecord:
        record = self._costs.find_plan(formats)
        if record is None:
            self._announce()
            record = self._costs.measure_plan(formats)
        self.progress.advance()
        return record

    def _result(self, name: str, formats: Formats) -> PlanResult:
        return self._make_result(name, formats, self._measure(formats))

    def _make_result(self, name: str, formats: Formats, record: PlanRecord) -> PlanResult:
        return PlanResult(
            name=name,
            counts=dict(Counter(formats.values())),
            size_bytes=count_plan_bytes(self._sites, self._rounding, formats),
            predicted_kl=self._predict_kl(formats),
            kl=record.kl,
            agreement=record.agreement,
            accept_length=record.accept_length,
        )

    def _site_costs(self, site: Site) -> SiteCosts:
        costs = [
            FormatCost(format=format_, size_bytes=size_bytes, kl=self._kls[format_][site.name])
            for format_, size_bytes in self._sizes[site.name].items()
            if self._kls.get(format_)
        ]
        return SiteCosts(
            name=site.name,
            layer=site.layer,
            kind=site.kind,
            num_weights=site.num_weights,
            costs=tuple(costs),
            chosen=self._plan.get(site.name),
        )


@contextmanager
def open_run(
    bundle: Bundle,
    folder: Path,
    open_session: Callable[[], MedusaSession],
    base: BaseModel,
    prompts: Sequence[BenchPrompt],
    records: Iterable[RankRecord],
    options: QuantizationOptions,
    threads: int | None,
    compensation_prompts: Sequence[BenchPrompt] = (),
) -> Iterator[QuantizationRun]:
    """Prepares a run on a bundle, with the recorded reply to each prompt.

    Plans are compared on the replies to `prompts`; compensated rounding is fitted to the others.
    `threads` is the number of threads of the unquantized model; None for torch's choice.

    Raises:
        MedusaError: see `QuantizationRun`, or a log is damaged.
    """
    usual_threads = torch.get_num_threads()
    with open_session() as session:
        records = list(records)
        texts = texts_from_records(session, prompts, records)
        compensation_texts = texts_from_records(session, compensation_prompts, records)
    torch.set_num_threads(threads or usual_threads)
    try:
        with closing(HeadsMeter(bundle, texts, open_session)) as heads_meter:
            target = bundle.manifest.target.name
            yield QuantizationRun(
                base, texts, folder, heads_meter, options, target, compensation_texts
            )
    finally:
        torch.set_num_threads(usual_threads)
