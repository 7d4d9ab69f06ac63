"""`medusa-trt bench`: the speed of Medusa beside that of plain decoding."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from medusa_trt.calibration.bench.options import BenchOptions
from medusa_trt.cli.arguments import BundleArguments, SessionArguments
from medusa_trt.cli.parser import Verb
from medusa_trt.cli.terminal import make_table_console
from medusa_trt.files import check_writable, replace_file
from medusa_trt.interrupts import find_interrupt_code

if TYPE_CHECKING:
    from medusa_trt.calibration.bench.report import BenchReport, BenchSetup
    from medusa_trt.calibration.prompts import BenchPrompt
    from medusa_trt.runtime.session import MedusaSession

EXIT_DIFFERENT = 1
"""The exit code where Medusa gave other tokens than plain decoding, and must not."""

_MT_BENCH_PROMPTS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchArguments(BundleArguments):
    """Compare the speed of Medusa with that of plain decoding, on the same prompts and engine.

    Attributes:
        prompts: JSON lines with "prompt" or "turns", or a text with a prompt on each line (default:
            MT-bench, with two turns each).
        num_prompts: number of prompts to use, taken evenly from all categories (default: 16 of
            MT-bench's 80, all of a file's).
        json: write all that was measured to this file (default: no file).
        plot: draw the results to this file, a .png, .svg or .html (default: no file).
        bench: how the benchmark is run.
        session: how the bundle is run.
    """

    prompts: Annotated[Path | None, "--prompts FILE"] = None
    num_prompts: int | None = None
    json: Annotated[Path | None, "--json FILE"] = None
    plot: Annotated[Path | None, "--plot FILE"] = None
    bench: BenchOptions = field(default_factory=BenchOptions)
    session: SessionArguments = field(default_factory=SessionArguments)


def bench(arguments: BenchArguments) -> int:
    """Measures and reports.

    Returns:
        The exit code: 1 if tokens differ that must not, 130 after a Ctrl-C and 143 after SIGTERM,
        which still report the prompts that were finished.
    """
    _check_outputs(arguments)
    prompts = _load_prompts(arguments)
    options = arguments.bench
    if options.concurrency or options.arrivals:
        return _measure_loads(prompts, arguments)
    with arguments.session.open(arguments.bundle) as session:
        return _measure_and_report(session, prompts, arguments)


def _measure_loads(prompts: Sequence["BenchPrompt"], arguments: BenchArguments) -> int:
    """Measures requests that run at the same time, and prints their table."""
    from medusa_trt.calibration.bench.load import count_requests, list_loads, measure_loads
    from medusa_trt.calibration.bench.load_table import encode_loads, make_table, summarize_loads
    from medusa_trt.calibration.progress import Progress

    options = arguments.bench
    most = max(load.concurrency for load in list_loads(options))
    with arguments.session.open(arguments.bundle, most) as session:
        progress = Progress(count_requests(prompts, options), "requests")
        try:
            runs = measure_loads(session, prompts, options, progress.advance)
        finally:
            progress.end()
    figures = summarize_loads(runs)
    make_table_console().print(make_table(figures))
    _write_json(arguments.json, encode_loads(figures, runs))
    return EXIT_DIFFERENT if any(row.num_different for row in figures) else 0


def _measure_and_report(
    session: "MedusaSession",
    prompts: Sequence["BenchPrompt"],
    arguments: BenchArguments,
) -> int:
    from medusa_trt.calibration.bench.measurement import (
        check_runnable,
        drop_missing_heads,
        fill_thresholds,
        measure_replies,
        warm_up,
    )
    from medusa_trt.calibration.bench.report import BenchReport, read_peak_memory_bytes
    from medusa_trt.calibration.bench.summary import (
        noise_from_rows,
        select_whole_prompts,
        summarize,
    )
    from medusa_trt.calibration.bench.tables import print_report
    from medusa_trt.calibration.noise import CoreWatch
    from medusa_trt.calibration.origin import Origin
    from medusa_trt.calibration.progress import Progress
    from medusa_trt.runtime.engines.machine import Machine

    options = drop_missing_heads(arguments.bench, session.bundle)
    options = fill_thresholds(options, session.bundle.manifest)
    check_runnable(session, prompts, options)
    setup = _describe_setup(session, prompts, arguments, options)
    num_replies = sum(len(prompt.turns) for prompt in prompts) * options.rounds
    progress = Progress(num_replies * len(options.modes), "replies")
    progress.announce(num_replies * warm_up(session, prompts[0], options))
    cores = CoreWatch()
    measured = []
    with progress.until_interrupted():
        for row in measure_replies(session, prompts, options):
            measured.append(row)
            progress.advance()
    free_cores = cores.count_free_cores()
    rows = select_whole_prompts(measured, prompts, len(options.modes))
    if not rows:
        raise KeyboardInterrupt
    origin = Origin.from_command(
        Machine.detect(), duration_s=progress.elapsed_s, is_complete=progress.is_complete
    )
    report = BenchReport(
        **{field.name: getattr(origin, field.name) for field in fields(origin)},
        num_prompts_done=len({row.prompt_id for row in rows}),
        peak_memory_bytes=read_peak_memory_bytes(),
        setup=setup,
        noise=noise_from_rows(rows, options.modes, free_cores, setup.threads),
        summary=summarize(rows, options.modes),
    )
    print_report(report, make_table_console())
    _write_json(arguments.json, report.to_json(rows))
    _save_plot(arguments.plot, report)
    if report.summary.differences:
        return EXIT_DIFFERENT
    return 0 if progress.is_complete else find_interrupt_code()


def _load_prompts(arguments: BenchArguments) -> list["BenchPrompt"]:
    from medusa_trt.calibration.prompts import (
        load_mt_bench_prompts,
        prompts_from_file,
        spread_over_categories,
    )

    if arguments.prompts is not None:
        prompts = prompts_from_file(arguments.prompts)
        default = len(prompts)
    else:
        prompts, default = load_mt_bench_prompts(), _MT_BENCH_PROMPTS
    num_prompts = default if arguments.num_prompts is None else arguments.num_prompts
    return spread_over_categories(prompts, num_prompts)


def _describe_setup(
    session: "MedusaSession",
    prompts: Sequence["BenchPrompt"],
    arguments: BenchArguments,
    options: BenchOptions,
) -> "BenchSetup":
    from medusa_trt.calibration.bench.measurement import find_fixed_tree
    from medusa_trt.calibration.bench.report import BenchSetup

    assert options.posterior_threshold is not None and options.posterior_alpha is not None
    manifest, tree = session.bundle.manifest, find_fixed_tree(session, options.tree)
    return BenchSetup(
        bundle=str(arguments.bundle),
        model=manifest.model.name,
        target=manifest.target.name,
        precision=manifest.target.precision,
        num_heads=0 if manifest.heads is None else manifest.heads.num_heads,
        tree=None if tree is None else f"{tree.name} with {tree.num_nodes} nodes",
        prompts="MT-bench" if arguments.prompts is None else str(arguments.prompts),
        num_prompts=len(prompts),
        rounds=options.rounds,
        max_new_tokens=options.max_new_tokens,
        max_length=session.max_length,
        threads=arguments.session.num_threads,
        temperature=options.temperature,
        seed=options.seed,
        posterior_threshold=options.posterior_threshold,
        posterior_alpha=options.posterior_alpha,
    )


def _check_outputs(arguments: BenchArguments) -> None:
    """Checks that the files can be written, before the measurement takes its time.

    Raises:
        MedusaError: a file cannot be written, or a plot cannot be drawn.
    """
    for path in (arguments.json, arguments.plot):
        if path is not None:
            check_writable(path)
    if arguments.plot is not None:
        from medusa_trt.calibration.bench.plot import check_plot_path

        check_plot_path(arguments.plot)


def _write_json(path: Path | None, content: bytes) -> None:
    if path is not None:
        with replace_file(path) as temporary:
            temporary.write_bytes(content)
        print(f"wrote {path}", file=sys.stderr)


def _save_plot(path: Path | None, report: "BenchReport") -> None:
    if path is not None:
        from medusa_trt.calibration.bench.plot import save_plot

        with replace_file(path) as temporary:
            save_plot(report, temporary)
        print(f"wrote {path}", file=sys.stderr)


VERBS = {"bench": Verb(BenchArguments, bench)}
