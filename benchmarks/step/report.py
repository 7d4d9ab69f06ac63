"""Results of `step_latency.py` and their tables."""

import statistics
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from medusa_trt.runtime.engines.machine import Machine

_PREFILL_TOKENS = 512
_SHARE_OF_NODES = "8"


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTable:
    """Times of one bundle at one number of threads and one past.

    Attributes:
        bundle: folder of the bundle.
        precision: precision of its weights.
        threads: threads of the engine.
        past: tokens in the KV cache.
        read_bytes: size of the weights and the cache, which one step reads.
        arithmetic_ms: arithmetic floor by the number of nodes.
        times_ms: all times by name. The name of a step is its number of nodes; the others are
            "heads", "host" (64 nodes), "prefill" (512 tokens) and "read" (the bandwidth floor).
    """

    bundle: str
    precision: str
    threads: int
    past: int
    read_bytes: int
    arithmetic_ms: dict[int, float]
    times_ms: dict[str, list[float]]

    def median_ms(self, name: str) -> float:
        """Median of the times with this name."""
        return statistics.median(self.times_ms[name])

    def compute_floor_ms(self, num_nodes: int) -> float:
        """The larger of both floors, because reading and computing can overlap."""
        return max(self.median_ms("read"), self.arithmetic_ms[num_nodes])


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """All results of a run."""

    command: str
    machine: Machine
    rounds: int
    tables: list[StepTable]


def print_report(report: StepReport, console: Console) -> None:
    """Prints a table for each bundle, number of threads and past length."""
    console.print(
        f"{report.machine.cpu}, medians of {report.rounds} interleaved rounds; x one: ratio to one "
        "node; x plain: ratio to one node of the fastest bundle; arith. ms: the matrix products "
        "alone, with weights in the CPU cache; x floor: ratio to the larger of read and arith."
    )
    for table in report.tables:
        same = [other for other in report.tables if other.threads == table.threads]
        at_past = [other for other in same if other.past == table.past]
        _print_table(table, min(other.median_ms("1") for other in at_past), console)
        nearest = min(
            (other for other in same if other.bundle == table.bundle), key=lambda other: other.past
        )
        if nearest is not table:
            ratio = table.median_ms(_SHARE_OF_NODES) / nearest.median_ms(_SHARE_OF_NODES)
            console.print(f"an 8-node step takes {ratio:.2f} of its time at past {nearest.past}")


def _print_table(step: StepTable, fastest_plain_ms: float, console: Console) -> None:
    read_ms = step.median_ms("read")
    table = Table(
        title=f"{step.precision}, past {step.past}, threads {step.threads}; "
        f"{step.read_bytes / 1e6:.0f} MB read in {read_ms:.2f} ms "
        f"({step.read_bytes / read_ms / 1e6:.1f} GB/s)",
        title_justify="left",
    )
    columns = ("nodes", "ms", "best", "quartiles", "x one", "x plain", "arith. ms", "x floor")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    one_node_ms = step.median_ms("1")
    for num_nodes, arithmetic_ms in step.arithmetic_ms.items():
        low, median, high = statistics.quantiles(step.times_ms[str(num_nodes)], n=4)
        table.add_row(
            str(num_nodes),
            f"{median:.2f}",
            f"{min(step.times_ms[str(num_nodes)]):.2f}",
            f"{low:.2f}-{high:.2f}",
            f"{median / one_node_ms:.2f}",
            f"{median / fastest_plain_ms:.2f}",
            f"{arithmetic_ms:.2f}",
            f"{median / step.compute_floor_ms(num_nodes):.2f}",
        )
    console.print(table)
    heads_ms, host_ms = step.median_ms("heads"), step.median_ms("host")
    share = heads_ms / step.median_ms(_SHARE_OF_NODES)
    console.print(
        f"heads {heads_ms:.2f} ms, {share:.1%} of an 8-node step; "
        f"host {host_ms:.2f} ms at 64 nodes; prefill of {_PREFILL_TOKENS}: "
        f"{1e3 * _PREFILL_TOKENS / step.median_ms('prefill'):.0f} tokens/s\n"
    )
