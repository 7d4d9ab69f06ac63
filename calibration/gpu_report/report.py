"""The report itself: runs all stages, writes `report.md` and JSON, and packs the folder."""

import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import msgspec

from medusa_trt import __version__
from medusa_trt.calibration.gpu_report.bandwidth import (
    BandwidthShare,
    compute_shares,
    find_bandwidth_gb_s,
    read_gpu_name,
)
from medusa_trt.calibration.gpu_report.graph_comparison import GraphComparison
from medusa_trt.calibration.gpu_report.options import GpuReportOptions
from medusa_trt.calibration.gpu_report.stages import (
    LOGS_FOLDER,
    StageResult,
    list_stages,
    run_stages,
)
from medusa_trt.calibration.latency.section import LatencyPoint, LatencySection
from medusa_trt.calibration.report.results import FOLDER, Calibration, load_calibration
from medusa_trt.errors import CalibrationError
from medusa_trt.files import check_writable
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.engines.machine import Machine

GRAPHS_FILE = "graphs.json"
JSON_FILE = "report.json"
PAGE_FILE = "report.md"

_LOGGED = {"machine": "The machine", "steps": "Steps and draws against the host", "bench": "Speed"}
"""Stages whose output is shown in the report, with its title."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All that was found.

    Attributes:
        model: name of the model.
        target: the bundle's target.
        precision: the bundle's precision.
        date: when the report was written, in ISO format.
        machine: what it was made on.
        gpu: name of the GPU; None without one.
        stages: what became of each stage.
        graphs: the comparison of each graph.
        latency: step times; None if they were not measured.
        bandwidth: bandwidth of the measured steps.
    """

    model: str
    target: str
    precision: str
    date: str
    machine: Machine
    gpu: str | None
    stages: tuple[StageResult, ...]
    graphs: tuple[GraphComparison, ...] = ()
    latency: LatencySection | None = None
    bandwidth: tuple[BandwidthShare, ...] = ()

    @property
    def is_good(self) -> bool:
        """Whether no stage failed."""
        return all(stage.status != "failed" for stage in self.stages)


def choose_folder(bundle: Bundle, options: GpuReportOptions) -> Path:
    """Chooses the report's folder, and checks that it can be made.

    Raises:
        CalibrationError: it exists, or cannot be written.
    """
    folder = options.output or Path(f"gpu-report-{bundle.path.resolve().name}")
    if folder.exists() and options.stage is None:
        raise CalibrationError(f"{folder} exists: give another --output, or remove it")
    check_writable(folder, CalibrationError, is_folder=True)
    return folder


def make_report(
    bundle: Bundle, options: GpuReportOptions, folder: Path, tell: Callable[[str], None]
) -> Report:
    """Runs all stages, and writes the report and its archive.

    Raises:
        MedusaError: the options name no known GPU, or the folder cannot be written.
    """
    gpu = read_gpu_name()
    bandwidth_gb_s = find_bandwidth_gb_s(gpu, options.gpu)
    folder.mkdir(parents=True, exist_ok=True)
    stages = list_stages(bundle, options, folder)
    results = tuple(run_stages(stages, folder, options.stage_minutes, tell))
    done = {result.name for result in results if result.status == "done"}
    latency = _read_latency(bundle) if "latency" in done else None
    points: list[LatencyPoint] = [] if latency is None else latency.points
    model, target = bundle.manifest.model, bundle.manifest.target
    report = Report(
        model=model.name,
        target=target.name,
        precision=target.precision,
        date=datetime.now(timezone.utc).astimezone().isoformat(timespec="seconds"),
        machine=Machine.detect(),
        gpu=gpu,
        stages=results,
        graphs=_read_graphs(folder),
        latency=latency,
        bandwidth=tuple(compute_shares(bundle, points, bandwidth_gb_s)),
    )
    content = msgspec.json.format(msgspec.json.encode(report), indent=2)
    (folder / JSON_FILE).write_bytes(content)
    page = "\n".join(render_report(report, folder))
    (folder / PAGE_FILE).write_text(page + "\n", "utf-8")
    return report


def pack_folder(folder: Path) -> Path:
    """Packs a folder into an archive beside it, and returns its path."""
    archive = folder.with_name(f"{folder.name}.tar.gz")
    with tarfile.open(archive, "w:gz") as file:
        file.add(folder, arcname=folder.name)
    return archive


def write_graphs(comparisons: list[GraphComparison], folder: Path) -> None:
    """Writes the comparisons for `make_report`, which runs in another process."""
    content = msgspec.json.format(msgspec.json.encode(comparisons), indent=2)
    (folder / GRAPHS_FILE).write_bytes(content)


def _read_graphs(folder: Path) -> tuple[GraphComparison, ...]:
    path = folder / GRAPHS_FILE
    if not path.is_file():
        return ()
    return msgspec.json.decode(path.read_bytes(), type=tuple[GraphComparison, ...])


def _read_latency(bundle: Bundle) -> LatencySection | None:
    """Reads the step times that `calibrate latency` has just measured."""
    target = bundle.manifest.target
    empty = Calibration(
        model=bundle.manifest.model.name,
        target=target.name,
        precision=target.precision,
        bundle=bundle.digest,
    )
    sections = load_calibration(bundle.path / FOLDER, empty).latency
    return next((section for section in sections if section.kind == (1, None)), None)


def render_report(report: Report, folder: Path) -> Iterator[str]:
    """Renders the report as lines of Markdown."""
    yield f"# {report.model}, {report.target}, {report.precision}"
    yield ""
    yield f"{report.date}, medusa-trt {__version__},"
    yield f"{report.gpu or 'no NVIDIA GPU'}, {report.machine.cpu}, {report.machine.system}."
    yield ""
    yield "| stage | result | seconds | why |"
    yield "|---|---|---|---|"
    for stage in report.stages:
        why = stage.reason.replace("|", "\\|")
        yield f"| {stage.name} | {stage.status} | {stage.duration_s:.0f} | {why} |"
    yield ""
    yield f"The folder `{LOGS_FOLDER}` has what each stage printed, `{JSON_FILE}` all figures."
    if report.graphs:
        yield from _render_graphs(report.graphs)
    if report.latency is not None:
        yield from _render_latency(report)
    for name, title in _LOGGED.items():
        path = folder / LOGS_FOLDER / f"{name}.log"
        if path.is_file():
            yield from ("", f"## {title}", "", "```")
            yield path.read_text("utf-8", errors="replace").strip()
            yield "```"


def _render_graphs(graphs: tuple[GraphComparison, ...]) -> Iterator[str]:
    yield from ("", "## Graphs against ONNX Runtime on the CPU", "")
    yield from ("| graph | tested | output | error | |", "|---|---|---|---|---|")
    for graph in graphs:
        if graph.reason is not None:
            yield f"| {graph.graph} | not compared: {graph.reason} | | | |"
        for output in graph.outputs:
            verdict = "agrees" if output.agrees else "**differs**"
            cells = (graph.graph, graph.tested, output.name, f"{output.error:.1e}", verdict)
            yield f"| {' | '.join(cells)} |"
    for graph in graphs:
        if graph.agrees:
            continue
        yield from ("", f"{graph.graph}, inside: ", "")
        if graph.layers_reason is not None:
            yield f"not compared: {graph.layers_reason}"
        elif graph.failure is not None:
            yield f"it did not run: {graph.failure}"
        elif not graph.layers:
            yield f"all {graph.num_layers} tensors agree where each of them is an output."
        for layer in graph.layers:
            yield f"- `{layer.name}` {layer.error:.1e}"
        yield from ("", "To repeat it in this folder; BUNDLE is the bundle's folder:", "", "```")
        yield from graph.commands or ("(Polygraphy's command line lacks the operators)",)
        yield "```"


def _render_latency(report: Report) -> Iterator[str]:
    assert report.latency is not None
    yield from ("", "## Step times", "")
    if report.latency.warning is not None:
        yield from (report.latency.warning, "")
    yield "| context | nodes | step, ms | engine, ms | heads, ms | GB/s | of the bandwidth |"
    yield "|---|---|---|---|---|---|---|"
    for point, used in zip(report.latency.points, report.bandwidth, strict=True):
        heads = "" if point.heads_ms is None else f"{point.heads_ms:.3f}"
        share = "not known" if used.share is None else f"{used.share:.0%}"
        yield (
            f"| {point.context} | {point.num_nodes} | {point.step_ms.median:.3f} | "
            f"{point.engine_ms:.3f} | {heads} | {used.gb_per_s:.1f} | {share} |"
        )
    yield from ("", "GB/s counts weights and cache that a step reads at least, by the step's time.")
