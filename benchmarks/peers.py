"""Tokens per second of this project, llama.cpp, onnxruntime-genai and transformers, side by side.

    python benchmarks/peers.py BUNDLE [--threads 1 --threads 2] [--prompts 20] [--tokens 128]

Every contender is a process in an environment of its own with pinned packages, made below
build/peers when it is first needed. All get the same token ids (MT-bench's first turns through the
model's chat template) and generate the same number of tokens greedily, past an end of sequence.
They take turns: each answers a prompt before any answers the next, and all but one are stopped.
After a Ctrl-C or SIGTERM the prompts that all have answered are reported.
"""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import datetime, timezone
from pathlib import Path

import msgspec
from peer.contenders import Contender, contenders_for
from peer.environments import PeerError, Workshop
from peer.process import PeerProcess
from peer.report import PeerReply, PeerReport, is_identical, print_report
from rich.console import Console

from medusa_trt.calibration.bench.report import replaced_file
from medusa_trt.calibration.machine import Machine
from medusa_trt.calibration.progress import Progress
from medusa_trt.calibration.prompts import mt_bench_prompts, spread_over_categories
from medusa_trt.errors import MedusaError
from medusa_trt.interrupts import interrupted_exit_code, raise_interrupts
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.text import TextCodec

NUM_PROMPTS, NUM_TOKENS = 20, 128
_COLUMNS_OF_FILES = 120


def main() -> int:
    """Runs the benchmark; the exit code is 1 if Medusa changed what is generated."""
    arguments = parsed_arguments()
    raise_interrupts()  # so that both end the contenders, which would stand still for ever
    try:
        check(arguments)
        report = measured(arguments)
        print_report(report, Console(width=None if sys.stdout.isatty() else _COLUMNS_OF_FILES))
        if arguments.json is not None:
            with replaced_file(arguments.json) as temporary:
                temporary.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1))
            print(f"wrote {arguments.json}", file=sys.stderr)
    except MedusaError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return interrupted_exit_code()
    if not is_identical(report):
        return 1
    return 0 if report.is_complete else interrupted_exit_code()


def parsed_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("bundles", type=Path, nargs="+", metavar="BUNDLE")
    parser.add_argument("--model", help="what the peers run (default: the bundle's model)")
    parser.add_argument(
        "--threads", type=int, action="append", metavar="N", help="repeatable (default: 1)"
    )
    numbers = (("--prompts", NUM_PROMPTS, "prompts"), ("--tokens", NUM_TOKENS, "tokens a reply"))
    for name, default, what in numbers:
        parser.add_argument(
            name, type=int, default=default, metavar="N", help=f"{what} (default: %(default)s)"
        )
    parser.add_argument(
        "--only", action="append", metavar="NAME", help="contenders whose name has this; repeatable"
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("build/peers"),
        help="environments and models (default: %(default)s)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured")
    return parser.parse_args()


def check(arguments: argparse.Namespace) -> None:
    """Fails now rather than after the measurement."""
    num_cores = len(os.sched_getaffinity(0))
    for threads in arguments.threads or ():
        if not 1 <= threads <= num_cores:
            raise MedusaError(f"--threads is {threads}: this process may use 1 to {num_cores}")
    if arguments.tokens < 2:
        raise MedusaError(f"--tokens is {arguments.tokens}: it must be at least 2")
    if arguments.json is not None and not arguments.json.parent.is_dir():
        raise MedusaError(f"cannot write {arguments.json}: its folder does not exist")
    try:
        arguments.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MedusaError(f"cannot write {arguments.folder}: {error.strerror}") from error


def measured(arguments: argparse.Namespace) -> PeerReport:
    """Sets up, then measures with each number of threads.

    Raises:
        MedusaError: a bundle cannot be opened, or no contender is left.
    """
    bundles = [Bundle.open(path) for path in arguments.bundles]
    prompts = prompts_for(bundles[0], arguments.prompts)
    max_length = max(map(len, prompts)) + arguments.tokens
    model = arguments.model or bundles[0].manifest.model.name
    workshop = Workshop(arguments.folder.resolve(), say)
    left_out: dict[str, str] = {}
    contenders = contenders_for(workshop, model, bundles, max_length, arguments.only, left_out)
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
    )
    try:
        for threads in arguments.threads or [1]:
            round_robin(contenders, threads, prompts, report, workshop.folder)
    except KeyboardInterrupt:
        drop_incomplete(report)
        if not report.replies:
            raise
        report.is_complete = False
    return report


def prompts_for(bundle: Bundle, num_prompts: int) -> list[list[int]]:
    """MT-bench's first turns as token ids, through the model's chat template."""
    text = TextCodec(bundle)
    prompts = spread_over_categories(mt_bench_prompts(), num_prompts)
    return [text.encode_chat([{"role": "user", "content": prompt.turns[0]}]) for prompt in prompts]


def round_robin(
    contenders: Sequence[Contender],
    threads: int,
    prompts: Sequence[list[int]],
    report: PeerReport,
    folder: Path,
) -> None:
    """Every contender answers prompt i before any answers prompt i + 1; adds to the report.

    One that fails is left out with all its replies.
    """
    with ExitStack() as stack:
        running: dict[str, PeerProcess] = {}
        for contender in contenders:
            if contender.name in report.left_out:
                continue
            try:
                process = PeerProcess(contender, threads, folder / f"{contender.name}.log")
                running[contender.name] = stack.enter_context(process)
                report.versions[contender.name] = process.versions
            except PeerError as error:
                leave_out(contender.name, error, report)
        progress = Progress(len(running) * len(prompts), f"replies, threads {threads}")
        stack.callback(progress.end)
        for index, prompt in enumerate(prompts):
            for name, process in list(running.items()):
                try:
                    reply = process.answer(prompt, report.num_tokens)
                    report.replies.append(
                        PeerReply(contender=name, threads=threads, prompt=index, **reply)
                    )
                except PeerError as error:
                    running.pop(name)
                    leave_out(name, error, report)
                progress.advance()


def drop_incomplete(report: PeerReport) -> None:
    """After an interruption: keeps the prompts that every contender has answered."""
    names = {reply.contender for reply in report.replies}
    answered = Counter((reply.threads, reply.prompt) for reply in report.replies)
    report.replies[:] = [
        reply for reply in report.replies if answered[reply.threads, reply.prompt] == len(names)
    ]


def leave_out(name: str, error: PeerError, report: PeerReport) -> None:
    """Reports a contender that failed, and drops what it had answered."""
    say(f"{name} left out: {error}")
    report.left_out[name] = str(error)
    report.replies[:] = [reply for reply in report.replies if reply.contender != name]


def say(text: str) -> None:
    """A line on standard error."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
