"""The calibrations: each measures what is missing, and writes its section of the report.

What is measured is kept as it is made; Ctrl-C ends with a section of what is there, and the next
run goes on from it.
"""

import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import msgspec

from medusa_trt.calibration.bench.report import Machine
from medusa_trt.calibration.calibrate_options import (
    LatencyOptions,
    QuantizationOptions,
    ReplySettings,
    ThresholdOptions,
    TreeOptions,
)
from medusa_trt.calibration.latency.curve import LatencyRecord
from medusa_trt.calibration.latency.measurement import (
    LatencyMeter,
    machine_fingerprint,
    measurable_options,
    points_to_measure,
)
from medusa_trt.calibration.progress import Progress
from medusa_trt.calibration.prompts import (
    PACKAGED,
    BenchPrompt,
    digest_from_source,
    prompts_from_source,
)
from medusa_trt.calibration.records import RecordLog
from medusa_trt.calibration.report.results import (
    FOLDER,
    LATENCY_FILE,
    RANKS_FILE,
    THRESHOLD_FILE,
    Calibration,
    HeadsSection,
    LatencySection,
    Origin,
    QuantizationSection,
    ThresholdSection,
    TreeSection,
    load_calibration,
    save_calibration,
)
from medusa_trt.calibration.report.sections import (
    chosen_tree,
    heads_section,
    latency_section,
    records_of,
    tree_section,
)
from medusa_trt.calibration.threshold import measurement as threshold
from medusa_trt.calibration.threshold.summary import recommend, summarize_rules
from medusa_trt.calibration.trees import head_ranks
from medusa_trt.calibration.trees.install import check_installable, finish_install, install_tree
from medusa_trt.errors import CalibrationError
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.session import MedusaSession


class Calibrator:
    """Calibrates one bundle on this machine."""

    def __init__(
        self, path: Path, *, threads: int | None = None, max_length: int | None = None
    ) -> None:
        """Opens the bundle and what is known of it.

        Args:
            path: the bundle's folder.
            threads: for one step; None for the engine's choice.
            max_length: longest sequence; None for the bundle's.

        Raises:
            MedusaError: the bundle or its calibration is damaged.
        """
        self.folder = path / FOLDER
        finish_install(path, self.folder)
        self.bundle = Bundle.open(path)
        self._threads, self._max_length = threads, max_length
        self._machine = Machine.this()
        self._fingerprint = machine_fingerprint(self._machine)
        manifest = self.bundle.manifest
        self._calibration = load_calibration(
            self.folder,
            Calibration(
                model=manifest.model.name,
                target=manifest.target.name,
                precision=manifest.target.precision,
            ),
        )

    def heads(self, settings: ReplySettings, num_prompts: int | None = None) -> HeadsSection:
        """Records ranks along replies, and writes the heads' section.

        Raises:
            KeyboardInterrupt: Ctrl-C before the first reply.
            MedusaError: a prompt does not fit, or nothing was recorded.
        """
        log, progress, is_complete = self._recorded_ranks(
            prompts_from_source(settings.prompts, num_prompts), settings
        )
        origin = self._origin(progress, is_complete)
        _require_any([record for record in log if record.settings == settings], origin)
        section = heads_section(self.bundle, log, settings, num_prompts, origin)
        self._save(msgspec.structs.replace(self._calibration, heads=section))
        return section

    def latency(self, options: LatencyOptions) -> LatencySection:
        """Measures step times, and writes their section.

        Raises:
            KeyboardInterrupt: Ctrl-C before the first sample.
            MedusaError: no size or context can be measured, or nothing was.
        """
        log = RecordLog(self.folder / LATENCY_FILE, LatencyRecord)
        progress = Progress(0, "samples")

        def work() -> None:
            nonlocal progress
            with self._session(options.batch_size) as session:
                own = measurable_options(session, options)
                points = points_to_measure(own, log, self._fingerprint, self._threads)
                progress = Progress(len(points), "samples")
                if points:
                    meter = LatencyMeter(session, own, self._fingerprint, self._threads)
                    progress.announce(meter.estimate_s(points))
                    meter.measure(points, log, progress.advance)

        origin = self._origin(progress, _interruptible(work, progress))
        _require_any(records_of(log, self._fingerprint, self._threads, options.batch_size), origin)
        section = latency_section(log, self._fingerprint, self._threads, options, origin)
        kept = [other for other in self._calibration.latency if not _same_kind(other, section)]
        self._save(msgspec.structs.replace(self._calibration, latency=(*kept, section)))
        return section

    def tree(self, options: TreeOptions, *, dry_run: bool = False) -> TreeSection:
        """Searches the best tree and puts it into the bundle; measures first what is missing.

        Args:
            options: what for.
            dry_run: leave the bundle's tree as it is.

        Raises:
            KeyboardInterrupt: Ctrl-C while measuring; the next run goes on.
            MedusaError: too little was recorded, or the bundle cannot be written.
        """
        if not dry_run:
            check_installable(self.bundle)
        heads = self._whole_heads()
        self._measure_whole_latency(options.batch_size)
        progress = Progress(1, "searches")
        latencies = RecordLog(self.folder / LATENCY_FILE, LatencyRecord)
        section = tree_section(
            self.bundle,
            RecordLog(self.folder / RANKS_FILE, head_ranks.RankRecord).records,
            records_of(latencies, self._fingerprint, self._threads, options.batch_size),
            heads.settings,
            self._threads,
            options,
            self._origin(progress, True),
        )
        tree = chosen_tree(section.choice)
        if not dry_run:
            if tree != self.bundle.tree:
                self.bundle = install_tree(self.bundle, tree, self.folder)
            section = replace(section, written=True)
        self._save(msgspec.structs.replace(self._calibration, tree=section))
        return section

    def threshold(
        self,
        settings: ReplySettings,
        options: ThresholdOptions,
        num_prompts: int | None = None,
    ) -> ThresholdSection:
        """Compares thresholds of typical acceptance, and writes their section.

        Raises:
            MedusaError: a prompt does not fit, or the bundle's tree drafts nothing.
        """
        log = RecordLog(self.folder / THRESHOLD_FILE, threshold.ThresholdRecord)
        prompts = prompts_from_source(settings.prompts, num_prompts)
        rules = threshold.rules_from_options(options)
        choices = self.bundle.tree.medusa_choices
        threshold.check_drafts(self.bundle.tree)
        missing = threshold.missing_replies(rules, prompts, settings, choices, log)
        progress = Progress(len(missing), "replies")

        def work() -> None:
            if not missing:
                return
            with self._session() as session:
                one_s = threshold.estimate_s(session, prompts[0], settings)
                progress.announce(len(missing) * one_s)
                threshold.record_replies(session, prompts, settings, missing, log, progress.advance)

        is_complete = _interruptible(work, progress)
        own = [record for record in log if record.settings == settings and record.tree == choices]
        summaries = summarize_rules(own, rules)
        section = ThresholdSection(
            origin=self._origin(progress, is_complete),
            settings=settings,
            tree=self.bundle.tree.name,
            num_prompts=summaries[0].num_replies if summaries else 0,
            rules=summaries,
            recommendations=recommend(summaries, options),
        )
        self._save(msgspec.structs.replace(self._calibration, threshold=section))
        return section

    def quantization(
        self,
        settings: ReplySettings,
        options: QuantizationOptions,
        num_prompts: int | None = None,
    ) -> QuantizationSection:
        """Finds a format for each matrix; writes the plan and the section.

        Raises:
            KeyboardInterrupt: Ctrl-C while the replies are written; the next run goes on.
            MedusaError: the unquantized model cannot be loaded, no plan keeps to the budget, or
                torch is not installed.
        """
        try:
            from medusa_trt.calibration.quantization import inputs as quantization_inputs
            from medusa_trt.calibration.quantization import run as quantization
        except ImportError as error:
            raise CalibrationError(
                f"comparing with the unquantized model needs {error.name}: pip install "
                "'medusa-trt[export]'"
            ) from error
        prompts = prompts_from_source(settings.prompts, num_prompts)
        base = quantization_inputs.unquantized_model(self.bundle, options.model)
        ranks, _, is_complete = self._recorded_ranks(prompts, settings)
        if not is_complete:
            raise KeyboardInterrupt
        with quantization.opened_run(
            self.bundle,
            self.folder,
            self._session,
            base,
            prompts,
            ranks,
            settings,
            options,
            self._threads,
        ) as run:
            is_complete = _interruptible(run.measure, run.progress)
        section = run.section(self._origin(run.progress, is_complete), settings)
        run.save_plan(self.folder)
        self._save(msgspec.structs.replace(self._calibration, quantization=section))
        return section

    def _recorded_ranks(
        self, prompts: Sequence[BenchPrompt], settings: ReplySettings
    ) -> tuple[RecordLog[head_ranks.RankRecord], Progress, bool]:
        """The recorded replies to these prompts, and whether there was no Ctrl-C before the end."""
        log = RecordLog(self.folder / RANKS_FILE, head_ranks.RankRecord)
        done = {record.prompt_id for record in log if record.settings == settings}
        num_missing = sum(prompt.id not in done for prompt in prompts)
        progress = Progress(num_missing, "replies")

        def work() -> None:
            if num_missing == 0:
                return
            with self._session() as session:
                one_s = head_ranks.estimate_s(session, prompts[0], settings)
                progress.announce(num_missing * one_s)
                head_ranks.record_ranks(session, prompts, settings, log, progress.advance)

        return log, progress, _interruptible(work, progress)

    def _session(self, batch_size: int = 1) -> MedusaSession:
        return MedusaSession(
            self.bundle,
            num_threads=self._threads,
            max_length=self._max_length,
            batch_size=batch_size,
        )

    def _origin(self, progress: Progress, is_complete: bool) -> Origin:
        return Origin(
            command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            date=datetime.now(timezone.utc).astimezone().isoformat(timespec="seconds"),
            duration_s=round(progress.elapsed_s, 3),
            is_complete=is_complete,
            machine=self._machine,
        )

    def _whole_heads(self) -> HeadsSection:
        """The heads' section; measured, or measured to its end, where it is not whole."""
        section = self._calibration.heads
        if section is None or not section.origin.is_complete:
            print("measuring the heads first (medusa-trt calibrate heads)", file=sys.stderr)
            if section is None:
                digest = digest_from_source(PACKAGED)
                section = self.heads(ReplySettings(prompts=PACKAGED, prompts_sha256=digest))
            else:
                section = self.heads(section.settings, section.num_prompts)
            _require_complete(section.origin)
        return section

    def _measure_whole_latency(self, batch_size: int) -> None:
        """Measures step times of this machine where they are missing or not whole."""
        wanted = (self._threads, batch_size, self._fingerprint)
        options = LatencyOptions(batch_size=batch_size)
        for section in self._calibration.latency:
            machine = machine_fingerprint(section.origin.machine)
            if (section.threads, section.options.batch_size, machine) == wanted:
                options = section.options
                if section.origin.is_complete:
                    return
        print("measuring step times first (medusa-trt calibrate latency)", file=sys.stderr)
        _require_complete(self.latency(options).origin)

    def _save(self, calibration: Calibration) -> None:
        self._calibration = calibration
        save_calibration(self.folder, calibration)


def _interruptible(work: Callable[[], None], progress: Progress) -> bool:
    """Whether the work came to its end; a Ctrl-C ends it early."""
    try:
        work()
    except KeyboardInterrupt:
        return False
    finally:
        progress.end()
    return True


def _require_any(records: Sequence[object], origin: Origin) -> None:
    """After a Ctrl-C that came before anything was measured there is nothing to report."""
    if not records and not origin.is_complete:
        raise KeyboardInterrupt


def _require_complete(origin: Origin) -> None:
    """After a Ctrl-C nothing follows."""
    if not origin.is_complete:
        raise KeyboardInterrupt


def _same_kind(left: LatencySection, right: LatencySection) -> bool:
    return (left.options.batch_size, left.threads) == (right.options.batch_size, right.threads)
