"""Compares the speed of this project with llama.cpp, onnxruntime-genai and transformers.

    python benchmarks/peers.py BUNDLE [--threads 1 --threads 2] [--prompts 20] [--tokens 128]
    python benchmarks/peers.py BUNDLE --concurrency 4 --concurrency 8 [--rounds 3] [--prompts 16]

The contenders are these runtimes, with each precision that they offer. Each contender is a process
in a virtual environment with pinned packages, which is made below build/peers when it is first
needed. All get the same token ids (MT-bench's first turns in the model's chat template) and
generate the same number of tokens greedily; they ignore end tokens. They take turns: all answer a
prompt before the next one is sent, and only one runs at a time. After Ctrl-C or SIGTERM, the
prompts that all contenders have answered are reported. The exit code is 1 if Medusa changes the
tokens.

With --concurrency, a contender answers all prompts in its turn, N of them at the same time in one
batch: a request joins when another's reply has ended. onnxruntime-genai begins the next N when all
replies have ended, since it has no such batches on a CPU. Contenders that take one request at a
time are left out.
"""

import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime, timezone
from pathlib import Path

from peer.contenders import Contender, set_up_contenders
from peer.environments import PeerError, PeerInstaller
from peer.load import PeerLoad
from peer.process import PeerProcess
from peer.report import PeerReply, PeerReport, is_identical, print_report
from rich.console import Console
from script import (
    add_bundles,
    add_numbers,
    check_output,
    check_threads,
    make_parser,
    report_errors,
    write_json,
)

from medusa_trt.calibration.progress import Progress
from medusa_trt.calibration.prompts import load_mt_bench_prompts, spread_over_categories
from medusa_trt.errors import MedusaError
from medusa_trt.interrupts import find_interrupt_code, raise_interrupts
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.engines.machine import Machine
from medusa_trt.runtime.text.codec import TextCodec

_FILE_COLUMNS = 120
"""Width of the tables in characters when the output is not a terminal."""


@report_errors
def main() -> int:
    """Runs the benchmark."""
    arguments = parse_arguments()
    raise_interrupts()  # So that the contenders are ended too: they are stopped between answers.
    try:
        check(arguments)
        report = measure(arguments)
        print_report(report, Console(width=None if sys.stdout.isatty() else _FILE_COLUMNS))
        write_json(arguments.json, report)
    except KeyboardInterrupt:
        return find_interrupt_code()
    if not is_identical(report):
        return 1
    return 0 if report.is_complete else find_interrupt_code()


def parse_arguments() -> Namespace:
    """Parses the command line."""
    parser = make_parser(__doc__)
    add_bundles(parser, several=True)
    parser.add_argument(
        "--model", help="model that the other runtimes run (default: the one in the bundle)"
    )
    parser.add_argument(
        "--threads", type=int, action="append", metavar="N", help="may be repeated (default: 1)"
    )
    add_numbers(
        parser,
        ("--prompts", 20, "prompts to answer"),
        ("--tokens", 128, "tokens of every reply"),
        ("--rounds", 3, "turns of every contender, with --concurrency"),
    )
    parser.add_argument(
        "--concurrency",
        type=int,
        action="append",
        metavar="N",
        help="requests at the same time, instead of one after the other; may be repeated",
    )
    parser.add_argument(
        "--only",
        action="append",
        metavar="NAME",
        help="only contenders whose name contains NAME; may be repeated",
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("build/peers"),
        help="folder in which environments and models are made",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured")
    return parser.parse_args()


def check(arguments: Namespace) -> None:
    """Checks the arguments before anything is measured."""
    check_threads(arguments.threads or ())
    if arguments.tokens < 2:
        raise MedusaError(f"--tokens is {arguments.tokens}: it must be at least 2")
    if min(arguments.concurrency or [1]) < 1 or arguments.rounds < 1:
        raise MedusaError("--concurrency and --rounds must be at least 1")
    check_output(arguments.json)
    try:
        arguments.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MedusaError(f"cannot write {arguments.folder}: {error.strerror}") from error


def measure(arguments: Namespace) -> PeerReport:
    """Sets up the contenders, then measures with each number of threads.

    Raises:
        MedusaError: a bundle cannot be opened, or no contender is left.
    """
    bundles = [Bundle.open(path) for path in arguments.bundles]
    prompts = encode_prompts(bundles[0], arguments.prompts)
    max_length = max(map(len, prompts)) + arguments.tokens
    model = arguments.model or bundles[0].manifest.model.name
    installer = PeerInstaller(arguments.folder.resolve(), say)
    left_out: dict[str, str] = {}
    contenders = set_up_contenders(installer, model, bundles, max_length, arguments.only, left_out)
    report = PeerReport(
        command=" ".join(["peers.py", *sys.argv[1:]]),
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        model=model,
        num_tokens=arguments.tokens,
        prompt_lengths=[len(prompt) for prompt in prompts],
        machine=Machine.detect(),
        versions={},
        left_out=left_out,
        is_complete=True,
        replies=[],
        loads=[],
    )
    try:
        for threads in arguments.threads or [1]:
            for concurrency in arguments.concurrency or [None]:
                running = start_contenders(
                    contenders, threads, report, installer.folder, concurrency
                )
                with running as processes:
                    if concurrency is None:
                        run_contenders(processes, threads, prompts, report)
                    else:
                        for round_ in range(arguments.rounds):
                            run_loads(processes, threads, concurrency, round_, prompts, report)
    except KeyboardInterrupt:
        drop_incomplete(report)
        if not (report.replies or report.loads):
            raise
        report.is_complete = False
    return report


def encode_prompts(bundle: Bundle, num_prompts: int) -> list[list[int]]:
    """Encodes MT-bench's first turns in the model's chat template."""
    text = TextCodec(bundle)
    prompts = spread_over_categories(load_mt_bench_prompts(), num_prompts)
    return [text.encode_chat([{"role": "user", "content": prompt.turns[0]}]) for prompt in prompts]


@contextmanager
def start_contenders(
    contenders: Sequence[Contender],
    threads: int,
    report: PeerReport,
    folder: Path,
    concurrency: int | None,
) -> Iterator[dict[str, PeerProcess]]:
    """Starts a process for each contender; those that fail are left out."""
    with ExitStack() as stack:
        running: dict[str, PeerProcess] = {}
        for contender in contenders:
            if contender.name in report.left_out:
                continue
            try:
                if concurrency is not None and not contender.takes_several:
                    raise PeerError("it takes one request at a time")
                log = folder / f"{contender.name}.log"
                process = PeerProcess(contender, threads, log, concurrency)
                running[contender.name] = stack.enter_context(process)
                report.versions[contender.name] = process.versions
            except PeerError as error:
                leave_out(contender.name, error, report)
        yield running


def run_contenders(
    running: dict[str, PeerProcess], threads: int, prompts: Sequence[list[int]], report: PeerReport
) -> None:
    """Lets every contender answer a prompt before the next one is sent; adds to the report.

    A contender that fails is left out with all its replies.
    """
    progress = Progress(len(running) * len(prompts), f"replies, threads {threads}")
    try:
        for index, prompt in enumerate(prompts):
            for name in list(running):
                with leaving_out(name, running, report):
                    reply = running[name].answer(prompt, report.num_tokens)
                    report.replies.append(
                        PeerReply(contender=name, threads=threads, prompt=index, **reply)
                    )
                progress.advance()
    finally:
        progress.end()


def run_loads(
    running: dict[str, PeerProcess],
    threads: int,
    concurrency: int,
    round_: int,
    prompts: Sequence[list[int]],
    report: PeerReport,
) -> None:
    """Lets every contender answer all prompts once, several at a time; adds to the report."""
    names = list(running) if round_ % 2 == 0 else list(running)[::-1]
    progress = Progress(len(names), f"contenders, {concurrency} at a time, round {round_ + 1}")
    try:
        for name in names:
            with leaving_out(name, running, report):
                replies = running[name].answer_many(prompts, report.num_tokens)
                load = PeerLoad(
                    contender=name,
                    threads=threads,
                    concurrency=concurrency,
                    round=round_,
                    **replies,
                )
                report.loads.append(load)
            progress.advance()
    finally:
        progress.end()


def drop_incomplete(report: PeerReport) -> None:
    """Keeps only what every contender has answered, after an interruption."""
    names = {reply.contender for reply in report.replies}
    answered = Counter((reply.threads, reply.prompt) for reply in report.replies)
    report.replies[:] = [
        reply for reply in report.replies if answered[reply.threads, reply.prompt] == len(names)
    ]
    rounds = Counter((load.threads, load.concurrency, load.round) for load in report.loads)
    most = max(rounds.values(), default=0)
    report.loads[:] = [
        load for load in report.loads if rounds[load.threads, load.concurrency, load.round] == most
    ]


@contextmanager
def leaving_out(name: str, running: dict[str, PeerProcess], report: PeerReport) -> Iterator[None]:
    """Leaves a contender out if it fails inside the block."""
    try:
        yield
    except PeerError as error:
        running.pop(name)
        leave_out(name, error, report)


def leave_out(name: str, error: PeerError, report: PeerReport) -> None:
    """Reports a contender that failed, and drops its replies."""
    say(f"{name} left out: {error}")
    report.left_out[name] = str(error)
    report.replies[:] = [reply for reply in report.replies if reply.contender != name]
    report.loads[:] = [load for load in report.loads if load.contender != name]


def say(text: str) -> None:
    """Prints a line on standard error."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
