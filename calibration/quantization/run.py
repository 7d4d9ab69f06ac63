"""Finds a format for each matrix of a model: each alone, then plans that are measured."""

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np
import torch

from medusa_trt.calibration.bench.report import replaced_file
from medusa_trt.calibration.calibrate_options import QuantizationOptions, ReplySettings
from medusa_trt.calibration.progress import Progress
from medusa_trt.calibration.prompts import BenchPrompt
from medusa_trt.calibration.quantization.choice import Frontier, Option, frontier_from_options
from medusa_trt.calibration.quantization.costs import Drafter, PlanRecord, QuantizationCosts
from medusa_trt.calibration.quantization.inputs import drafter_of, texts_from_records
from medusa_trt.calibration.quantization.meter import Formats, Text
from medusa_trt.calibration.quantization.plans import (
    MOST_TRIES,
    best_plan,
    fixed_plans,
    formats_from_names,
    plan_bytes,
    site_options,
)
from medusa_trt.calibration.quantization.section import (
    PLAN,
    FormatCost,
    FrontierPoint,
    PlanResult,
    SiteCosts,
    advice_text,
)
from medusa_trt.calibration.report.results import (
    MODELOPT_FILE,
    QUANTIZATION_PLAN_FILE,
    Origin,
    QuantizationSection,
)
from medusa_trt.calibration.trees.head_ranks import RankRecord
from medusa_trt.export.models.base_model import BaseModel
from medusa_trt.export.quantization.modelopt import arguments_from_plan
from medusa_trt.export.quantization.plan import PlannedSite, QuantizationPlan
from medusa_trt.export.quantization.rounding import rounding_of
from medusa_trt.export.quantization.sites import Site, sites_from_model
from medusa_trt.export.targets import target_from_name
from medusa_trt.export.weight_formats import Format, is_rounded
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.session import MedusaSession

_FRONTIER_POINTS = 200


class QuantizationRun:
    """One calibration: measures what is missing, and tells what is known."""

    def __init__(
        self,
        base: BaseModel,
        texts: Sequence[Text],
        folder: Path,
        drafter: Drafter,
        options: QuantizationOptions,
        target: str,
    ) -> None:
        """Finds the model's sites; nothing is measured yet.

        Args:
            base: the unquantized model.
            texts: what to compare on.
            folder: of the logs.
            drafter: to be tried with the plans.
            options: what for.
            target: where the plan is to run, unless the options say so.

        Raises:
            ExportError: there is no such target.
            CalibrationError: it lacks a format.
        """
        self._target = target_from_name(options.target or target)
        self._formats = formats_from_names(self._target, options.formats)
        self._base, self._texts, self._options = base, texts, options
        self._rounding = rounding_of(self._target)
        self._sites = sites_from_model(base.model)
        self._sizes = {
            site.name: site_options(site, self._target, self._rounding, self._formats)
            for site in self._sites
        }
        rounded = [format_ for format_ in self._formats if is_rounded(format_)]
        self._costs = QuantizationCosts(
            base.model, self._sites, self._rounding, rounded, texts, folder, drafter
        )
        self._fixed = fixed_plans(self._sites, self._target, self._rounding, self._formats)
        self._missing = self._costs.missing_texts()
        self._num_plans = len(self._fixed) + MOST_TRIES
        self.progress = Progress(len(self._missing) + self._num_plans, "measurements")
        self._is_announced = False
        self._kls = self._known_kls()
        self._frontier: Frontier | None = None
        self._plan: dict[str, Format] = {}
        self._results: list[PlanResult] = []

    def measure(self) -> None:
        """Estimates every site alone, then measures plans, and chooses one.

        Raises:
            KeyboardInterrupt: on Ctrl-C; what is measured is kept.
            CalibrationError: no plan keeps to the budget.
        """
        for index in self._missing:
            self._announce()
            self._costs.estimate_text(index)
            self.progress.advance()
        self._kls = self._known_kls()
        self._frontier = frontier_from_options(
            {
                name: [Option(each, size, self._kl(name, each)) for each, size in own.items()]
                for name, own in self._sizes.items()
            }
        )
        for name, formats in self._fixed.items():
            self._results.append(self._result(name, formats))
        plan = best_plan(self._frontier, self._options, lambda formats: self._measured(formats).kl)
        self._results.append(self._result(PLAN, plan))
        self._plan = plan

    def save_plan(self, folder: Path) -> None:
        """Writes the plan, if it is found: for an export, and for ModelOpt where that takes it.

        Raises:
            MedusaError: it cannot be written.
        """
        if not self._plan:
            return
        plan = QuantizationPlan(
            model=self._base.source.name,
            target=self._target.name,
            sites=tuple(
                PlannedSite(site.name, self._plan[site.name], site.weights) for site in self._sites
            ),
        )
        with replaced_file(folder / QUANTIZATION_PLAN_FILE) as temporary:
            temporary.write_bytes(plan.to_json())
        found = arguments_from_plan(plan) if self._target.mixed.on_device else None
        if found is None:
            (folder / MODELOPT_FILE).unlink(missing_ok=True)
            return
        with replaced_file(folder / MODELOPT_FILE) as temporary:
            temporary.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=2))

    def section(self, origin: Origin, settings: ReplySettings) -> QuantizationSection:
        """What is known by now."""
        self._kls = self._known_kls()
        points = []
        if self._frontier is not None:
            shown = np.linspace(0, len(self._frontier) - 1, _FRONTIER_POINTS).round().astype(int)
            points = [
                FrontierPoint(
                    size_bytes=int(self._frontier.sizes[index]),
                    predicted_kl=float(self._frontier.kls[index]),
                )
                for index in dict.fromkeys(shown.tolist())
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
            advice=advice_text(self._results),
        )

    def _announce(self) -> None:
        """Says what it will cost, before the first work that is not known."""
        if not self._is_announced:
            self._is_announced = True
            print("running the unquantized model", file=sys.stderr)
            self.progress.announce(self._costs.estimate_s(len(self._missing), self._num_plans))

    def _known_kls(self) -> dict[Format, dict[str, float]]:
        """What each site causes alone, by format."""
        return {each: self._costs.site_kls(each) for each in self._formats if is_rounded(each)}

    def _kl(self, site: str, format_: Format) -> float:
        return self._kls[format_][site] if is_rounded(format_) else 0.0

    def _measured(self, formats: Formats) -> PlanRecord:
        record = self._costs.known_plan(formats)
        if record is None:
            self._announce()
            record = self._costs.measure_plan(formats)
        self.progress.advance()
        return record

    def _result(self, name: str, formats: Formats) -> PlanResult:
        record = self._measured(formats)
        return PlanResult(
            name=name,
            counts=dict(Counter(formats.values())),
            size_bytes=plan_bytes(self._sites, self._rounding, formats),
            predicted_kl=sum(self._kl(site, each) for site, each in formats.items()),
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
def opened_run(
    bundle: Bundle,
    folder: Path,
    opened: Callable[[], MedusaSession],
    base: BaseModel,
    prompts: Sequence[BenchPrompt],
    ranks: Iterable[RankRecord],
    settings: ReplySettings,
    options: QuantizationOptions,
    threads: int | None,
) -> Iterator[QuantizationRun]:
    """A calibration of a bundle.

    Args:
        bundle: for its tokenizer, heads, tree and target.
        folder: the bundle's folder for calibrations.
        opened: opens a session on the bundle.
        base: the unquantized model.
        prompts: what was asked.
        ranks: the replies, one to each prompt and these settings.
        settings: of the replies.
        options: what for.
        threads: of the unquantized model; None for torch's choice.

    Raises:
        MedusaError: see `QuantizationRun`; a damaged log.
    """
    usual_threads = torch.get_num_threads()
    with opened() as session:
        texts = texts_from_records(session, prompts, ranks, settings)
    torch.set_num_threads(threads or usual_threads)
    try:
        with drafter_of(bundle, texts, opened) as drafter:
            target = bundle.manifest.target.name
            yield QuantizationRun(base, texts, folder, drafter, options, target)
    finally:
        torch.set_num_threads(usual_threads)
