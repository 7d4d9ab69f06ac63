"""The calibrations of a bundle: each measures what is missing and writes its section of the report.

Measurements are logged as they are made. Ctrl-C ends a calibration with a section of what was
measured until then, and the next run continues from there.
"""

import sys
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from medusa_trt.calibration.latency.curve import (
    LATENCY_FILE,
    LatencyKind,
    LatencyRecord,
    select_records,
)
from medusa_trt.calibration.latency.measurement import (
    LatencyMeter,
    fit_to_session,
    list_missing_points,
)
from medusa_trt.calibration.latency.section import LatencySection
from medusa_trt.calibration.options import (
    LatencyOptions,
    QuantizationOptions,
    ReplySettings,
    ThresholdOptions,
    TreeOptions,
)
from medusa_trt.calibration.origin import Origin
from medusa_trt.calibration.progress import Progress
from medusa_trt.calibration.prompts import (
    PACKAGED,
    BenchPrompt,
    digest_from_source,
    prompts_from_source,
    select_further_prompts,
)
from medusa_trt.calibration.quantization.section import QuantizationSection
from medusa_trt.calibration.records import RecordLog
from medusa_trt.calibration.report.html import save_page
from medusa_trt.calibration.report.results import (
    FOLDER,
    Calibration,
    load_calibration,
    save_calibration,
)
from medusa_trt.calibration.threshold import measurement as threshold
from medusa_trt.calibration.threshold.install import install_thresholds
from medusa_trt.calibration.threshold.summary import ThresholdSection
from medusa_trt.calibration.trees import head_ranks
from medusa_trt.calibration.trees.growth import make_typical_trees
from medusa_trt.calibration.trees.heads_section import HeadsSection
from medusa_trt.calibration.trees.install import (
    check_bundle_writable,
    check_installable,
    finish_install,
    install_tree,
)
from medusa_trt.calibration.trees.tree_section import TreeSection
from medusa_trt.errors import CalibrationError, require_extra
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.engines.machine import Machine
from medusa_trt.runtime.session import MedusaSession
from medusa_trt.tree_configs import MedusaTree, chain_tree


class Calibrator:
    """Calibrates one bundle on this machine."""

    def __init__(
        self, path: Path, *, threads: int | None = None, max_length: int | None = None
    ) -> None:
        """Opens the bundle and the results of earlier calibrations.

        Args:
            path: the bundle's folder.
            threads: threads for one step; None for the engine's choice.
            max_length: longest sequence; None for the bundle's.

        Raises:
            MedusaError: the bundle or its calibration is damaged, or the results cannot be written.
        """
        self.folder = path / FOLDER
        finish_install(path, self.folder)
        self.bundle = Bundle.open(path)
        check_bundle_writable(self.folder)
        self._threads, self._max_length = threads, max_length
        self._machine = Machine.detect()
        manifest, self._digest = self.bundle.manifest, self.bundle.digest
        # All that step times depend on, but for the options of a calibration.
        self._fingerprint = f"{self._machine.fingerprint}, bundle {self._digest}"
        self._calibration = load_calibration(
            self.folder,
            Calibration(
                model=manifest.model.name,
                target=manifest.target.name,
                precision=manifest.target.precision,
                bundle=self._digest,
            ),
        )

    def measure_heads(
        self, settings: ReplySettings, num_prompts: int | None = None
    ) -> HeadsSection:
        """Records the heads' ranks along replies, and writes the section on the heads.

        Raises:
            KeyboardInterrupt: Ctrl-C before the first reply.
            MedusaError: a prompt does not fit.
        """
        self.bundle.manifest.require_heads("calibrate heads")
        settings = self._bind(settings)
        prompts = prompts_from_source(settings.prompts, num_prompts)
        records, progress = self._record_ranks(prompts, settings)
        _require_any(records, progress)
        section = HeadsSection.from_records(
            self.bundle, records, settings, num_prompts, self._origin(progress)
        )
        self._save(msgspec.structs.replace(self._calibration, heads=section))
        return section

    def measure_latency(self, options: LatencyOptions, *, again: bool = False) -> LatencySection:
        """Measures step times, and writes their section.

        Args:
            options: which steps are timed.
            again: forget what was measured before on this machine.

        Raises:
            KeyboardInterrupt: Ctrl-C before the first sample.
            MedusaError: no size or context can be measured.
        """
        log = RecordLog(self.folder / LATENCY_FILE, LatencyRecord)
        kind = self._latency_kind(options.batch_size)
        if again:
            log.forget(lambda record: record.kind == kind)
        progress = Progress(0, "samples")
        with progress.until_interrupted(), self._session(options.batch_size) as session:
            measurable = fit_to_session(session, options)
            points = list_missing_points(measurable, select_records(log, kind))
            progress.total = len(points)
            if points:
                trees = self._make_trees(measurable.sizes)
                meter = LatencyMeter(session, measurable, trees, self._fingerprint, self._threads)
                progress.announce(meter.estimate_s(points))
                meter.measure(points, log, progress.advance)
        records = select_records(log, kind)
        _require_any(records, progress)
        section = LatencySection.from_records(
            records, self._threads, options, self._origin(progress)
        )
        others = [other for other in self._calibration.latency if other.kind != section.kind]
        self._save(msgspec.structs.replace(self._calibration, latency=(*others, section)))
        return section

    def search_tree(
        self, options: TreeOptions, *, dry_run: bool = False, again: bool = False
    ) -> TreeSection:
        """Searches the best tree and puts it into the bundle; first measures what is missing.

        Args:
            options: what to search for.
            dry_run: leave the bundle's tree as it is.
            again: measure step times again.

        Raises:
            KeyboardInterrupt: Ctrl-C while measuring; the next run continues.
            MedusaError: too little was recorded, or the bundle cannot be written.
        """
        self.bundle.manifest.require_heads("calibrate tree")
        if not dry_run:
            check_installable(self.bundle)
        settings = self._complete_heads().settings
        warning = self._complete_latency(options.batch_size, again=again).warning
        ranks = RecordLog(self.folder / head_ranks.RANKS_FILE, head_ranks.RankRecord)
        latencies = RecordLog(self.folder / LATENCY_FILE, LatencyRecord)
        section = TreeSection.from_records(
            self.bundle,
            [record for record in ranks if record.settings == settings],
            select_records(latencies, self._latency_kind(options.batch_size)),
            settings,
            self._threads,
            options,
            Origin.from_command(self._machine, duration_s=0.0, is_complete=True),
        )
        if warning is not None:
            section = replace(section, advice=f"{section.advice} {warning}")
        tree = section.choice.chosen_tree
        if not dry_run:
            if tree != self.bundle.tree:
                self.bundle = install_tree(self.bundle, tree, self.folder)
            section = replace(section, written=True)
        self._save(msgspec.structs.replace(self._calibration, tree=section))
        return section

    def compare_thresholds(
        self,
        settings: ReplySettings,
        options: ThresholdOptions,
        num_prompts: int | None = None,
        *,
        dry_run: bool = False,
    ) -> ThresholdSection:
        """Compares thresholds of typical acceptance, and puts the best into the bundle.

        Args:
            settings: how replies are made.
            options: what is compared.
            num_prompts: number of prompts; None for all.
            dry_run: leave the bundle's thresholds as they are.

        Raises:
            MedusaError: a prompt does not fit, the bundle's tree drafts nothing, or the bundle
                cannot be written.
        """
        self.bundle.manifest.require_heads("calibrate threshold")
        if not dry_run:
            check_bundle_writable(self.bundle.path)
        settings = self._bind(settings)
        log = RecordLog(self.folder / threshold.THRESHOLD_FILE, threshold.ThresholdRecord)
        prompts = prompts_from_source(settings.prompts, num_prompts)
        rules, tree = threshold.rules_from_options(options), self.bundle.tree
        threshold.check_drafts(tree)
        missing = threshold.list_missing_replies(rules, prompts, settings, tree.medusa_choices, log)
        progress = Progress(len(missing), "replies")
        with progress.until_interrupted():
            if missing:
                with self._session() as session:
                    reply_s = threshold.estimate_s(session, prompts[0], settings)
                    progress.announce(len(missing) * reply_s)
                    threshold.record_replies(
                        session, prompts, settings, missing, log, progress.advance
                    )
        section = ThresholdSection.from_records(
            tree.name,
            [r for r in log if r.settings == settings and r.tree == tree.medusa_choices],
            rules,
            settings,
            options,
            self._origin(progress),
        )
        if section.origin.is_complete and not dry_run:
            self.bundle = install_thresholds(self.bundle, section.recommendations)
            section = replace(section, written=True)
        self._save(msgspec.structs.replace(self._calibration, threshold=section))
        return section

    def plan_quantization(
        self,
        settings: ReplySettings,
        options: QuantizationOptions,
        num_prompts: int | None = None,
    ) -> QuantizationSection:
        """Finds a format for each matrix, and writes the plan and its section.

        Raises:
            KeyboardInterrupt: Ctrl-C while the replies are generated; the next run continues.
            MedusaError: the unquantized model cannot be loaded, no plan keeps to the budget, or
                torch is not installed.
        """
        purpose = "comparing with the unquantized model"
        with require_extra(purpose, "export", error_class=CalibrationError):
            from medusa_trt.calibration.quantization.inputs import load_unquantized_model
            from medusa_trt.calibration.quantization.run import open_run
        settings = self._bind(settings)
        prompts = prompts_from_source(settings.prompts, num_prompts)
        further = []
        if options.compensate:
            further = select_further_prompts(
                settings.prompts, len(prompts), options.num_compensation_prompts
            )
        base = load_unquantized_model(self.bundle, options.model)
        records, recording = self._record_ranks([*prompts, *further], settings)
        _require_complete(recording.is_complete)
        with (
            open_run(
                self.bundle,
                self.folder,
                self._session,
                base,
                prompts,
                records,
                options,
                self._threads,
                further,
            ) as run,
            run.progress.until_interrupted(),
        ):
            run.measure()
        section = run.make_section(self._origin(run.progress), settings)
        run.save_plan(self.folder)
        self._save(msgspec.structs.replace(self._calibration, quantization=section))
        return section

    def _record_ranks(
        self, prompts: Sequence[BenchPrompt], settings: ReplySettings
    ) -> tuple[list[head_ranks.RankRecord], Progress]:
        """Replies that were recorded with these settings, after recording the missing ones."""
        log = RecordLog(self.folder / head_ranks.RANKS_FILE, head_ranks.RankRecord)
        num_missing = len(head_ranks.list_missing_prompts(prompts, settings, log))
        progress = Progress(num_missing, "replies")
        with progress.until_interrupted():
            if num_missing:
                with self._session() as session:
                    reply_s = head_ranks.estimate_s(session, prompts[0], settings)
                    progress.announce(num_missing * reply_s)
                    head_ranks.record_ranks(session, prompts, settings, log, progress.advance)
        return [record for record in log if record.settings == settings], progress

    def _make_trees(self, sizes: Collection[int]) -> dict[int, MedusaTree]:
        """Makes a tree of each size, as the heads may fill it; without heads a chain."""
        heads = self.bundle.manifest.heads
        if heads is None:
            return {size: chain_tree(size - 1) for size in sizes}
        return make_typical_trees(heads.num_heads, heads.top_k, sizes)

    def _session(self, batch_size: int = 1) -> MedusaSession:
        return MedusaSession(
            self.bundle,
            num_threads=self._threads,
            max_length=self._max_length,
            batch_size=batch_size,
        )

    def _origin(self, progress: Progress) -> Origin:
        return Origin.from_command(
            self._machine, duration_s=progress.elapsed_s, is_complete=progress.is_complete
        )

    def _complete_heads(self) -> HeadsSection:
        """The section on the heads; what is missing in it is measured first."""
        section = self._calibration.heads
        if section is None or not section.origin.is_complete:
            print("measuring the heads first (medusa-trt calibrate heads)", file=sys.stderr)
            if section is None:
                digest = digest_from_source(PACKAGED)
                section = self.measure_heads(ReplySettings(prompts=PACKAGED, prompts_sha256=digest))
            else:
                section = self.measure_heads(section.settings, section.num_prompts)
            _require_complete(section.origin.is_complete)
        return section

    def _complete_latency(self, batch_size: int, *, again: bool) -> LatencySection:
        """The section on step times; those of this machine that are missing are measured first."""
        options = LatencyOptions(batch_size=batch_size)
        for section in self._calibration.latency:
            is_here = section.origin.machine.fingerprint == self._machine.fingerprint
            if is_here and section.kind == (batch_size, self._threads):
                options = section.options
                if section.origin.is_complete and not again:
                    return section
        print("measuring step times first (medusa-trt calibrate latency)", file=sys.stderr)
        section = self.measure_latency(options, again=again)
        _require_complete(section.origin.is_complete)
        return section

    def _latency_kind(self, batch_size: int) -> LatencyKind:
        return self._fingerprint, self._threads, batch_size

    def _bind(self, settings: ReplySettings) -> ReplySettings:
        """Names this bundle in the settings, so that no other one's replies are mixed with its."""
        return msgspec.structs.replace(settings, bundle=self._digest)

    def _save(self, calibration: Calibration) -> None:
        self._calibration = calibration
        save_calibration(self.folder, calibration)
        save_page(self.folder, calibration)


def _require_any(records: Sequence[object], progress: Progress) -> None:
    """Stops after a Ctrl-C that came before the first measurement."""
    if not records:
        _require_complete(progress.is_complete)


def _require_complete(is_complete: bool) -> None:
    """Stops after a Ctrl-C."""
    if not is_complete:
        raise KeyboardInterrupt
