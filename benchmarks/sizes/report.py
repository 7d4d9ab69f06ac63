"""The report of `real_sizes.py` as data, tables and a plot."""

from dataclasses import dataclass
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table
from sizes.prediction import (
    VICUNA_7B_TOP_K,
    Prediction,
    predict,
    rank_accuracies,
    scale_to_layers,
)

from medusa_trt.export.models.random_weights import NUM_HEADS
from medusa_trt.runtime.engines.machine import Machine

ROWS, PASTS, PREFILL_ROWS = (1, 4, 8, 16, 64), (256, 2048), 512
HEADS_ROWS = 0
"""A step of so many rows is one call of the heads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """A step of one contender with some layers.

    Attributes:
        shape: name of the model whose shape it has.
        contender: runtime and precision.
        num_layers: layers that the measured model has.
        rows: rows of the step; see `HEADS_ROWS`.
        past: tokens in the KV cache.
        is_prefill: whether only the last row gets a next token.
        times_ms: every time.
        memory_bytes: the process's peak resident memory until then.
    """

    shape: str
    contender: str
    num_layers: int
    rows: int
    past: int
    is_prefill: bool
    times_ms: list[float]
    memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SizesReport:
    """Everything measured.

    Attributes:
        commands: command lines, one for each run.
        machine: the machine.
        threads: threads of every contender.
        num_layers: layers of each shape.
        versions: packages of each contender.
        measurements: the steps.
    """

    commands: list[str]
    machine: Machine
    threads: int
    num_layers: dict[str, int]
    versions: dict[str, dict[str, str]]
    measurements: list[Measurement]

    def list_contenders(self, shape: str) -> list[str]:
        """The contenders of a shape, in the order in which they were measured."""
        names = (entry.contender for entry in self.measurements if entry.shape == shape)
        return list(dict.fromkeys(names))

    def estimate_ms(
        self, shape: str, contender: str, rows: int, past: int, *, is_prefill: bool = False
    ) -> float:
        """Time of a step with all layers, extended from the two smallest numbers of layers."""
        by_layers: dict[int, list[float]] = {}
        for entry in self.measurements:
            if (entry.shape, entry.contender) == (shape, contender) and (
                entry.rows,
                entry.past,
                entry.is_prefill,
            ) == (rows, past, is_prefill):
                by_layers.setdefault(entry.num_layers, []).extend(entry.times_ms)
        return self._extend({key: median(times) for key, times in by_layers.items()}, shape)

    def measured_ms(self, shape: str, contender: str, rows: int, past: int) -> float | None:
        """Median time of a step with all layers, if it was measured."""
        times = [
            time_ms
            for entry in self.measurements
            if (entry.shape, entry.contender) == (shape, contender)
            and (entry.rows, entry.past) == (rows, past)
            and not entry.is_prefill
            and entry.num_layers == self.num_layers[shape]
            for time_ms in entry.times_ms
        ]
        return median(times) if times else None

    def estimate_memory_bytes(self, shape: str, contender: str) -> float:
        """Peak memory with all layers, weights and caches; not to be compared over runtimes.

        This project's has the heads and one cache, the others' one for each past and the prefill.
        """
        by_layers: dict[int, float] = {}
        for entry in self.measurements:
            if (entry.shape, entry.contender) == (shape, contender):
                largest = max(by_layers.get(entry.num_layers, 0), entry.memory_bytes)
                by_layers[entry.num_layers] = largest
        return self._extend(by_layers, shape)

    def _extend(self, by_layers: dict[int, float], shape: str) -> float:
        if len(by_layers) == 1:
            (value,) = by_layers.values()
            return value  # The heads have no layers.
        one, cut = sorted(by_layers)[:2]
        return scale_to_layers(by_layers[one], by_layers[cut], cut, self.num_layers[shape])

    def predict(self, shape: str, contender: str, past: int) -> list[Prediction]:
        """Speed of the best tree of each size, with the accuracies of Vicuna-7B's heads."""
        steps_ms = {rows: self.estimate_ms(shape, contender, rows, past) for rows in ROWS}
        heads_ms = self.estimate_ms(shape, contender, HEADS_ROWS, PASTS[0])
        return predict(steps_ms, heads_ms, rank_accuracies(VICUNA_7B_TOP_K[:NUM_HEADS]))


def print_report(report: SizesReport, console: Console) -> None:
    """Prints step times, the check of the rule where there is one, and the predictions."""
    for shape, num_layers in report.num_layers.items():
        console.print(_times_table(report, shape, num_layers))
        _print_check(report, shape, console)
        for contender in report.list_contenders(shape):
            if contender.startswith("medusa-trt"):
                for past in PASTS:
                    _print_best(report, shape, contender, past, console)
        console.print()


def _times_table(report: SizesReport, shape: str, num_layers: int) -> Table:
    title = f"{shape}, {num_layers} layers, {report.threads} threads: ms"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for past in PASTS:
        for rows in ROWS:
            table.add_column(f"{rows} at {past}", justify="right")
    for name in (f"prefill {PREFILL_ROWS}, tokens/s", "memory, GB"):
        table.add_column(name, justify="right")
    for contender in report.list_contenders(shape):
        steps = [
            f"{report.estimate_ms(shape, contender, rows, past):.1f}"
            for past in PASTS
            for rows in ROWS
        ]
        prefill_ms = report.estimate_ms(shape, contender, PREFILL_ROWS, 0, is_prefill=True)
        memory = report.estimate_memory_bytes(shape, contender)
        speed = f"{1e3 * PREFILL_ROWS / prefill_ms:.0f}"
        table.add_row(contender, *steps, speed, f"{memory / 1e9:.2f}")
    return table


def _print_check(report: SizesReport, shape: str, console: Console) -> None:
    for contender in report.list_contenders(shape):
        ratios = []
        for past in PASTS:
            for rows in ROWS:
                measured = report.measured_ms(shape, contender, rows, past)
                if measured is not None:
                    ratios.append(report.estimate_ms(shape, contender, rows, past) / measured)
        if ratios:
            text = f"{min(ratios):.2f} to {max(ratios):.2f}, median {median(ratios):.2f}"
            console.print(f"{contender}: extended over measured with all layers: {text}")


def _print_best(
    report: SizesReport, shape: str, contender: str, past: int, console: Console
) -> None:
    best = max(report.predict(shape, contender, past), key=lambda tree: tree.speedup)
    console.print(
        f"{contender} at {past}: best with {best.num_nodes} nodes, {best.length:.2f} tokens per "
        f"step, {best.step_ms:.1f} ms, {best.speedup:.2f} times plain decoding"
    )


def save_plot(report: SizesReport, file: Path) -> None:
    """Draws step time over rows behind the shorter past, a panel for each shape."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams |= {"svg.hashsalt": "real_sizes", "svg.fonttype": "none"}
    from matplotlib import pyplot

    past, shapes = PASTS[0], list(report.num_layers)
    figure, panels = pyplot.subplots(
        1, len(shapes), figsize=(3.6 * len(shapes), 3.8), squeeze=False, layout="constrained"
    )
    colours = {"medusa-trt": "#2f6ba6", "llama.cpp": "#d9791e", "OpenVINO": "#4b9a52"}
    for axes, shape in zip(panels[0], shapes, strict=True):
        for contender in report.list_contenders(shape):
            runtime, precision = contender.split()
            style = "--" if "8" in precision else ":" if precision == "q4_k_m" else "-"
            times = [report.estimate_ms(shape, contender, rows, past) for rows in ROWS]
            axes.plot(ROWS, times, style, marker="o", ms=3, color=colours[runtime], label=contender)
        axes.set(title=shape, xlabel="rows", xscale="log", yscale="log", xticks=ROWS)
        axes.set_xticks(ROWS, [str(rows) for rows in ROWS])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    panels[0][0].set_ylabel(f"ms a step behind {past} tokens")
    panels[0][0].legend(fontsize=7)
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)
