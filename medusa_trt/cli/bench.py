"""The command line's benchmark: `medusa-trt bench BUNDLE`."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, cast

from medusa_trt.calibration.bench.options import BenchOptions, ModeName
from medusa_trt.cli.session import add_session_arguments, session_from_arguments
from medusa_trt.errors import MedusaError
from medusa_trt.interrupts import interrupted_exit_code
from medusa_trt.tree_configs import load_tree

if TYPE_CHECKING:
    from medusa_trt.calibration.bench.measurement import ReplyRow
    from medusa_trt.calibration.bench.report import BenchReport, BenchSetup
    from medusa_trt.calibration.progress import Progress
    from medusa_trt.calibration.prompts import BenchPrompt
    from medusa_trt.runtime.session import MedusaSession

EXIT_DIFFERENT = 1

_MT_BENCH_PROMPTS = 16
_COLUMNS_OF_FILES = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `bench`."""
    options = BenchOptions()
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="what medusa-export wrote")
    parser.add_argument(
        "--modes",
        default=",".join(options.compared),
        metavar="LIST",
        help="what to compare with plain decoding; heads: greedy without prompt lookup",
    )
    group = parser.add_argument_group("prompts")
    group.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help='JSON lines with "prompt" or "turns", or text with a prompt on each line '
        "(default: MT-bench, two turns each)",
    )
    group.add_argument(
        "--num-prompts",
        type=int,
        metavar="N",
        help="use N of them, spread evenly over categories "
        f"(default: {_MT_BENCH_PROMPTS} of MT-bench's 80, all of a file's)",
    )
    _add_number(group, "--max-new-tokens", options.max_new_tokens, "limit on each reply, in tokens")
    _add_number(group, "--rounds", options.rounds, "repeat everything N times, and take medians")
    group = parser.add_argument_group("decoding")
    group.add_argument(
        "--temperature",
        type=float,
        default=options.temperature,
        metavar="T",
        help="temperature of sample and typical",
    )
    _add_number(group, "--seed", options.seed, "seed of sample and typical")
    group.add_argument("--tree", help="draft tree, by name or file (default: the bundle's)")
    add_session_arguments(group)
    group = parser.add_argument_group("output")
    group.add_argument("--json", type=Path, metavar="FILE", help="write everything measured there")
    group.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw it there: .png, .svg or .html"
    )
    group.add_argument("--verbose", action="store_true", help="show tracebacks")


def run(arguments: argparse.Namespace) -> int:
    """Measures and reports.

    Returns:
        The exit code: 1 if tokens differ that must not, 130 after a Ctrl-C and 143 after
        SIGTERM, which still report the prompts that were finished.

    Raises:
        MedusaError: whatever the user can cause; as far as possible before anything is measured.
    """
    tree = load_tree(arguments.tree) if arguments.tree else None
    options = BenchOptions(
        compared=tuple(cast("list[ModeName]", arguments.modes.split(","))),
        max_new_tokens=arguments.max_new_tokens,
        rounds=arguments.rounds,
        temperature=arguments.temperature,
        seed=arguments.seed,
        tree=tree,
    )
    _check_outputs(arguments)
    prompts = _prompts(arguments)
    with session_from_arguments(arguments.bundle, arguments) as session:
        return _bench(session, prompts, options, arguments)


def _bench(
    session: "MedusaSession",
    prompts: Sequence["BenchPrompt"],
    options: BenchOptions,
    arguments: argparse.Namespace,
) -> int:
    from rich.console import Console

    from medusa_trt.calibration.bench.measurement import check_runnable, warm_up
    from medusa_trt.calibration.bench.report import BenchReport, peak_memory_bytes
    from medusa_trt.calibration.bench.summary import summarize, whole_prompts
    from medusa_trt.calibration.bench.tables import print_report
    from medusa_trt.calibration.machine import Machine
    from medusa_trt.calibration.progress import Progress

    check_runnable(session, prompts, options)
    date, setup = (
        datetime.now(timezone.utc).astimezone(),
        _setup(session, prompts, options, arguments),
    )
    num_replies = sum(len(prompt.turns) for prompt in prompts) * options.rounds
    progress = Progress(num_replies * len(options.modes), "replies")
    progress.announce(num_replies * warm_up(session, prompts[0], options))
    rows, is_interrupted = _measure(session, prompts, options, progress)
    rows = whole_prompts(rows, prompts, len(options.modes))
    if not rows:
        raise KeyboardInterrupt
    report = BenchReport(
        command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        date=date.isoformat(timespec="seconds"),
        duration_s=round(progress.elapsed_s, 3),
        is_complete=not is_interrupted,
        num_prompts_done=len({row.prompt_id for row in rows}),
        peak_memory_bytes=peak_memory_bytes(),
        setup=setup,
        machine=Machine.detect(),
        summary=summarize(rows, options.modes, options.tree or session.bundle.tree),
    )
    print_report(report, Console(width=None if sys.stdout.isatty() else _COLUMNS_OF_FILES))
    _write(report, rows, arguments)
    if report.summary.differences:
        return EXIT_DIFFERENT
    return interrupted_exit_code() if is_interrupted else 0


def _measure(
    session: "MedusaSession",
    prompts: Sequence["BenchPrompt"],
    options: BenchOptions,
    progress: "Progress",
) -> tuple[list["ReplyRow"], bool]:
    """The measured replies, and whether a Ctrl-C ended it early."""
    from medusa_trt.calibration.bench.measurement import measure

    rows = []
    try:
        for row in measure(session, prompts, options):
            rows.append(row)
            progress.advance()
    except KeyboardInterrupt:
        return rows, True
    finally:
        progress.end()
    return rows, False


def _prompts(arguments: argparse.Namespace) -> list["BenchPrompt"]:
    from medusa_trt.calibration.prompts import (
        mt_bench_prompts,
        prompts_from_file,
        spread_over_categories,
    )

    if arguments.prompts is not None:
        prompts = prompts_from_file(arguments.prompts)
        default = len(prompts)
    else:
        prompts, default = mt_bench_prompts(), _MT_BENCH_PROMPTS
    wanted = default if arguments.num_prompts is None else arguments.num_prompts
    return spread_over_categories(prompts, wanted)


def _setup(
    session: "MedusaSession",
    prompts: Sequence["BenchPrompt"],
    options: BenchOptions,
    arguments: argparse.Namespace,
) -> "BenchSetup":
    from medusa_trt.calibration.bench.report import BenchSetup

    manifest, tree = session.bundle.manifest, options.tree or session.bundle.tree
    return BenchSetup(
        bundle=str(arguments.bundle),
        model=manifest.model.name,
        target=manifest.target.name,
        precision=manifest.target.precision,
        num_heads=manifest.heads.num_heads,
        tree=tree.name,
        num_nodes=tree.num_nodes,
        max_depth=int(tree.position_offsets.max()),
        prompts="MT-bench" if arguments.prompts is None else str(arguments.prompts),
        num_prompts=len(prompts),
        rounds=options.rounds,
        max_new_tokens=options.max_new_tokens,
        max_length=session.max_length,
        threads=arguments.threads,
        temperature=options.temperature,
        seed=options.seed,
    )


def _check_outputs(arguments: argparse.Namespace) -> None:
    """Fails now rather than after the measurement."""
    for path in (arguments.json, arguments.plot):
        if path is not None and (path.is_dir() or not path.parent.is_dir()):
            raise MedusaError(f"cannot write {path}: it must be a file in an existing folder")
    if arguments.plot is not None:
        from medusa_trt.calibration.bench.plot import check_plot_path

        check_plot_path(arguments.plot)


def _write(
    report: "BenchReport", rows: Sequence["ReplyRow"], arguments: argparse.Namespace
) -> None:
    from medusa_trt.calibration.bench.report import replaced_file

    if arguments.json is not None:
        with replaced_file(arguments.json) as temporary:
            temporary.write_bytes(report.to_json(rows))
    if arguments.plot is not None:
        from medusa_trt.calibration.bench.plot import save_plot

        with replaced_file(arguments.plot) as temporary:
            save_plot(report, temporary)
    for path in (arguments.json, arguments.plot):
        if path is not None:
            print(f"wrote {path}", file=sys.stderr)


def _add_number(group: argparse._ArgumentGroup, name: str, default: int, help_: str) -> None:
    group.add_argument(name, type=int, default=default, metavar="N", help=help_)
