"""Measures steps of the sizes people run: this project, llama.cpp and OpenVINO, random weights.

    python benchmarks/real_sizes.py llama-3.2-1b qwen3-4b [--layers 4] [--json FILE] [--plot FILE]

A shape keeps its full width and vocabulary, and is cut to one layer and to --layers layers. The
figures for all layers follow: time = t(1) + (all - 1) * (t(n) - t(1)) / (n - 1), memory alike. With
--check, the shape is also measured with all its layers, and the table says how well the rule holds.
Steps have 1 to 64 rows behind 256 and 2,048 tokens, and each row gets its next token; a prefill has
512 rows and one next token. Runtimes of as many bits take turns, a process each, in environments
that are made below --folder. The models are deleted after they were measured.

The speedup of Medusa is predicted from these times and the published accuracies of Vicuna-7B's
heads. With --json, a file that exists is added to.
"""

import fcntl
import sys
from argparse import Namespace
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
from peer.environments import PeerInstaller
from peer.process import PeerProcess
from rich.console import Console
from script import add_numbers, check_output, check_threads, make_parser, report_errors, write_json
from sizes.contenders import FORMATS, Format, make_contenders
from sizes.report import (
    HEADS_ROWS,
    PASTS,
    PREFILL_ROWS,
    ROWS,
    Measurement,
    SizesReport,
    print_report,
    save_plot,
)

from medusa_trt.errors import MedusaError
from medusa_trt.export.models.random_weights import config_from_name
from medusa_trt.interrupts import find_interrupt_code, raise_interrupts
from medusa_trt.runtime.engines.machine import Machine

_REPEATS = 3


@report_errors
def main() -> int:
    """Runs the benchmark."""
    parser = make_parser(__doc__)
    parser.add_argument("shapes", nargs="*", metavar="SHAPE", help="see medusa-export --help")
    add_numbers(
        parser,
        ("--threads", 2, "threads of every contender"),
        ("--layers", 4, "layers of the cut shape, besides one layer"),
        ("--rounds", 3, "turns of every contender"),
    )
    parser.add_argument("--check", action="store_true", help="measure all layers too")
    parser.add_argument("--only", metavar="NAME", help="contenders whose name contains NAME")
    parser.add_argument("--real-time", action="store_true", help="real-time priority; needs root")
    parser.add_argument(
        "--folder", type=Path, default=Path("build/peers"), help="folder for environments, models"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write or add to the figures")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the step times")
    arguments = parser.parse_args()
    check(arguments)
    report = open_report(arguments)
    raise_interrupts()  # So that the contenders are ended and their models deleted.
    try:
        for shape in arguments.shapes:
            measure_shape(arguments, shape, report)
            write_json(arguments.json, report)
    except KeyboardInterrupt:
        return find_interrupt_code()
    print_report(report, Console(width=None if sys.stdout.isatty() else 160))
    if arguments.plot is not None:
        save_plot(report, arguments.plot)
    return 0


def check(arguments: Namespace) -> None:
    """Checks the arguments before anything is made."""
    check_threads([arguments.threads])
    if arguments.layers < 2 or arguments.rounds < 1:
        raise MedusaError("--layers must be at least 2 and --rounds at least 1")
    for shape in arguments.shapes:
        config_from_name(shape, arguments.layers)
    for file in (arguments.json, arguments.plot):
        check_output(file)
    arguments.folder.mkdir(parents=True, exist_ok=True)


def open_report(arguments: Namespace) -> SizesReport:
    """Reads the report to add to, or begins one.

    Raises:
        MedusaError: the file is no such report, or one of another machine or number of threads.
    """
    machine = Machine.detect()
    begun = SizesReport(
        commands=[],
        machine=machine,
        threads=arguments.threads,
        num_layers={},
        versions={},
        measurements=[],
    )
    if arguments.json is not None and arguments.json.is_file():
        try:
            begun = msgspec.json.decode(arguments.json.read_bytes(), type=SizesReport)
        except msgspec.MsgspecError as error:
            raise MedusaError(f"{arguments.json} is no report of this script: {error}") from error
        if arguments.shapes and begun.threads != arguments.threads:
            raise MedusaError(
                f"{arguments.json} was measured with {begun.threads} threads: give another file"
            )
    if not arguments.shapes:
        return begun
    begun.commands.append(" ".join(["real_sizes.py", *sys.argv[1:]]))
    return replace(begun, machine=machine)


def measure_shape(arguments: Namespace, shape: str, report: SizesReport) -> None:
    """Measures a shape; the contenders of as many bits are on the disk and in memory together."""
    num_layers = int(config_from_name(shape, None).num_hidden_layers)
    report.num_layers[shape] = num_layers
    layers = [1, arguments.layers, *([num_layers] if arguments.check else [])]
    chosen = [form for form in FORMATS if arguments.only is None or arguments.only in form.name]
    names = {form.name for form in chosen}
    report.measurements[:] = [
        entry
        for entry in report.measurements
        if entry.shape != shape or entry.contender not in names
    ]
    for bits in dict.fromkeys(form.bits for form in chosen):
        formats = [form for form in chosen if form.bits == bits]
        measure_formats(arguments, shape, layers, formats, report)


def measure_formats(
    arguments: Namespace, shape: str, layers: list[int], formats: list[Format], report: SizesReport
) -> None:
    """Makes the models of some formats, measures them in turn, and deletes them."""
    with (
        TemporaryDirectory(dir=arguments.folder, prefix="models-") as folder,
        ExitStack() as stack,
    ):
        installer = PeerInstaller(arguments.folder.resolve(), say)
        contenders = {
            (form, count): contender
            for count in layers
            for form, contender in make_contenders(
                installer, Path(folder).resolve(), shape, count, formats, PASTS
            ).items()
        }
        lock = stack.enter_context((arguments.folder / "measuring.lock").open("w"))
        fcntl.flock(lock, fcntl.LOCK_EX)  # Another run may make its models meanwhile.
        processes: dict[tuple[Format, int], PeerProcess] = {}
        for (form, count), contender in contenders.items():
            log = arguments.folder / f"{form.name.replace(' ', '-')}-{count}.log"
            process = stack.enter_context(PeerProcess(contender, arguments.threads, log))
            processes[form, count] = process
            report.versions[form.name] = process.versions
            if arguments.real_time:
                process.use_real_time()
            process.time_rows(PREFILL_ROWS, 0, 1, is_prefill=True)  # It warms up.
        for round_ in range(arguments.rounds):
            for (form, count), process in processes.items():
                say(f"round {round_ + 1}: {form.name}, {count} layers")
                turn = measure_turn(process, shape, form, count, _REPEATS)
                report.measurements.extend(turn)


def measure_turn(
    process: PeerProcess, shape: str, form: Format, num_layers: int, repeats: int
) -> list[Measurement]:
    """Times all steps of one contender."""
    steps = [(rows, past, False) for past in PASTS for rows in ROWS] + [(PREFILL_ROWS, 0, True)]
    if form.runtime == "medusa-trt" and num_layers == 1:
        steps.append((HEADS_ROWS, PASTS[0], False))
    measurements = []
    for rows, past, is_prefill in steps:
        reply = process.time_rows(rows, past, 1 if is_prefill else repeats, is_prefill)
        measurements.append(
            Measurement(
                shape=shape,
                contender=form.name,
                num_layers=num_layers,
                rows=rows,
                past=past,
                is_prefill=is_prefill,
                times_ms=reply["times_ms"],
                memory_bytes=reply["peak_memory_bytes"],
            )
        )
    return measurements


def say(text: str) -> None:
    """Prints a line of progress."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
