"""Compares the speed of servers with OpenAI's API.

    python benchmarks/servers.py \\
        --server 'ours=.venv/bin/medusa-trt serve BUNDLE --port {port} --max-sequences 8' \\
        --server 'llama.cpp=llama-server -m FILE.gguf -np 8 -c 16384 --port {port}' \\
        [--clients 1 --clients 4 --clients 8] [--prompts 16] [--tokens 128] [--rounds 3]

The servers take turns, and only one runs at a time: the others are stopped by a signal. In its
turn a server answers all prompts (MT-bench's first turns, greedy), N at the same time: each client
sends its next request when its reply has ended. A system message that is new in every turn keeps
servers from using what they read before. The first server is the one that the others are compared
with.
"""

import sys
from argparse import Namespace
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from peer.load import make_load_table
from peer.server import ServerProcess, ServerRound
from rich.console import Console
from script import (
    add_numbers,
    check_output,
    make_parser,
    report_errors,
    write_json,
)

from medusa_trt.calibration.progress import Progress
from medusa_trt.calibration.prompts import load_mt_bench_prompts, spread_over_categories
from medusa_trt.errors import MedusaError
from medusa_trt.interrupts import find_interrupt_code, raise_interrupts
from medusa_trt.runtime.engines.machine import Machine

_FILE_COLUMNS = 120
"""Width of the tables in characters when the output is not a terminal."""


@dataclass(slots=True, kw_only=True)
class ServersReport:
    """All results of a run.

    Attributes:
        command: the command line.
        date: start of the run, UTC.
        servers: command line of each server, by name.
        num_prompts: prompts in a round.
        max_tokens: longest reply.
        machine: hardware, and this project's versions.
        rounds: all measured rounds.
    """

    command: str
    date: str
    servers: dict[str, str]
    num_prompts: int
    max_tokens: int
    machine: Machine
    rounds: list[ServerRound]


@report_errors
def main() -> int:
    """Runs the benchmark."""
    arguments = parse_arguments()
    raise_interrupts()  # So that the servers are ended too: they are stopped between their turns.
    try:
        report = measure(arguments)
    except KeyboardInterrupt:
        return find_interrupt_code()
    print_report(report, Console(width=None if sys.stdout.isatty() else _FILE_COLUMNS))
    write_json(arguments.json, report)
    return 0


def parse_arguments() -> Namespace:
    """Parses the command line."""
    parser = make_parser(__doc__)
    parser.add_argument(
        "--server",
        action="append",
        required=True,
        metavar="NAME=COMMAND",
        help="starts a server on {port}; may be repeated",
    )
    parser.add_argument(
        "--clients", type=int, action="append", metavar="N", help="may be repeated (default: 1 4 8)"
    )
    add_numbers(
        parser,
        ("--prompts", 16, "prompts in a turn"),
        ("--tokens", 128, "tokens of the longest reply"),
        ("--rounds", 3, "turns of every server"),
    )
    parser.add_argument(
        "--folder", type=Path, default=Path("build/servers"), help="folder for the servers' logs"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured")
    return parser.parse_args()


def measure(arguments: Namespace) -> ServersReport:
    """Starts the servers, then measures with each number of clients.

    Raises:
        MedusaError: an argument is wrong, or a server failed.
    """
    clients = arguments.clients or [1, 4, 8]
    for name in ("prompts", "tokens", "rounds"):
        if getattr(arguments, name) < 1:
            raise MedusaError(f"--{name} is {getattr(arguments, name)}: it must be at least 1")
    if min(clients) < 1:
        raise MedusaError(f"--clients is {min(clients)}: it must be at least 1")
    servers = parse_servers(arguments.server)
    check_output(arguments.json)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    report = ServersReport(
        command=" ".join(["servers.py", *sys.argv[1:]]),
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        servers=servers,
        num_prompts=arguments.prompts,
        max_tokens=arguments.tokens,
        machine=Machine.detect(),
        rounds=[],
    )
    questions = spread_over_categories(load_mt_bench_prompts(), arguments.prompts)
    with ExitStack() as stack:
        running = [
            stack.enter_context(ServerProcess(name, command, arguments.folder / f"{name}.log"))
            for name, command in servers.items()
        ]
        progress = Progress(len(clients) * arguments.rounds * len(running), "turns")
        stack.callback(progress.end)
        for number in clients:
            for round_ in range(arguments.rounds):
                system = f"You are a helpful assistant in conversation {number}.{round_}."
                prompts = [
                    [
                        {"role": "system", "content": system},
                        {"role": "user", "content": question.turns[0]},
                    ]
                    for question in questions
                ]
                for server in running if round_ % 2 == 0 else running[::-1]:
                    report.rounds.append(server.answer(prompts, arguments.tokens, number, round_))
                    progress.advance()
    return report


def parse_servers(texts: list[str]) -> dict[str, str]:
    """Parses NAME=COMMAND of each server.

    Raises:
        MedusaError: a text has another form, or a name stands twice.
    """
    servers: dict[str, str] = {}
    for text in texts:
        name, _, command = text.partition("=")
        if not name or "{port}" not in command:
            raise MedusaError(f"--server is {text}: give NAME=COMMAND with {{port}} in the command")
        if name in servers:
            raise MedusaError(f"--server {name} stands twice: give each server a name of its own")
        servers[name] = command
    return servers


def print_report(report: ServersReport, console: Console) -> None:
    """Prints a table for each number of clients."""
    machine = report.machine
    console.print(
        f"{machine.cpu}, {machine.num_usable_cores} cores; {report.num_prompts} prompts in a turn, "
        f"replies of at most {report.max_tokens} tokens"
    )
    for clients in dict.fromkeys(round_.clients for round_ in report.rounds):
        rounds: dict[str, list[ServerRound]] = {name: [] for name in report.servers}
        for round_ in report.rounds:
            if round_.clients == clients:
                rounds[round_.contender].append(round_)
        title = f"{clients} client{'s' if clients > 1 else ''}"
        console.print(make_load_table(title, rounds, next(iter(report.servers))))


if __name__ == "__main__":
    sys.exit(main())
