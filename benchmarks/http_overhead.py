"""Measures what HTTP costs: replies of one session, alternately through the server and without it.

    python benchmarks/http_overhead.py BUNDLE [--rounds N] [--tokens N]

Both use the same session in this process, so the engine reads the same memory; the client is
another process. In a round each prompt is answered four times: streamed and whole, over HTTP and
without. The exit code is 1 if the texts differ.
"""

import json
import socket
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

from rich.table import Table
from script import (
    add_bundles,
    add_numbers,
    make_parser,
    name_busy_machine,
    parse_answer,
    report_errors,
)

from medusa_trt.calibration.prompts import prompts_from_source
from medusa_trt.cli.terminal import make_table_console
from medusa_trt.runtime.options import GenerationOptions
from medusa_trt.runtime.session import MedusaSession
from medusa_trt.serving.app import make_app
from medusa_trt.serving.options import ServingOptions
from medusa_trt.serving.server import SWITCH_S, Server, open_socket

_NUM_PROMPTS = 4
Pairs = dict[bool, list[tuple[float, float]]]
"""Seconds of the same reply over HTTP and without it: streamed ones by True, whole by False."""


@report_errors
def main() -> int:
    """Measures, and prints a table."""
    parser = make_parser(__doc__)
    add_bundles(parser)
    add_numbers(
        parser,
        ("--rounds", 20, f"rounds of {_NUM_PROMPTS} prompts"),
        ("--tokens", 100, "tokens of each reply"),
    )
    arguments = parser.parse_args()
    with name_busy_machine(None):
        pairs, is_same = measure(arguments.bundle, arguments.rounds, arguments.tokens)
    make_table_console().print(make_overhead_table(pairs, arguments.tokens))
    if not is_same:
        print("error: a reply over HTTP differs from the session's", file=sys.stderr)
    return 0 if is_same else 1


def measure(bundle: Path, num_rounds: int, num_tokens: int) -> tuple[Pairs, bool]:
    """Measures the pairs; returns also whether their texts were the same."""
    prompts = [prompt.turns[0] for prompt in prompts_from_source("packaged", _NUM_PROMPTS)]
    pairs: Pairs = {True: [], False: []}
    is_same = True
    # A session each: the server's thread alone may step its own.
    with (
        MedusaSession(bundle) as session,
        MedusaSession(bundle) as served,
        _serve(served) as port,
        ProcessPoolExecutor(1, mp_context=get_context("spawn")) as client,
    ):
        for number in range(-1, num_rounds):  # The first round warms up.
            for place, prompt in enumerate(prompts):
                for streamed in (True, False):
                    seconds: dict[bool, float] = {}
                    texts: dict[bool, str] = {}
                    # The second one finds warmer caches, so which one that is changes.
                    for is_http in (True, False) if (number + place) % 2 else (False, True):
                        if is_http:
                            job = client.submit(_ask, port, prompt, num_tokens, streamed)
                            seconds[is_http], texts[is_http] = job.result()
                        else:
                            result = _generate(session, prompt, num_tokens, streamed)
                            seconds[is_http], texts[is_http] = result
                    is_same = is_same and texts[True] == texts[False]
                    if number >= 0:
                        pairs[streamed].append((seconds[True], seconds[False]))
    return pairs, is_same


def make_overhead_table(pairs: Pairs, num_tokens: int) -> Table:
    """Makes a table with a line for streamed and one for whole replies."""
    table = Table(title=f"replies of {num_tokens} tokens, one at a time; medians")
    for column in ("reply", "session tok/s", "HTTP tok/s", "HTTP costs", "standard error", "pairs"):
        table.add_column(column, justify="left" if column == "reply" else "right")
    for streamed, values in pairs.items():
        ratios = [over_http / alone for over_http, alone in values]
        over_http, alone = (statistics.median(column) for column in zip(*values, strict=True))
        # That of a median of normally distributed values, whose quartiles are 1.35 deviations
        # apart; single replies that another program held up do not count.
        first, _, third = statistics.quantiles(ratios, n=4)
        error = 1.25 * (third - first) / 1.35 / len(ratios) ** 0.5
        table.add_row(
            "streamed" if streamed else "whole",
            f"{num_tokens / alone:.1f}",
            f"{num_tokens / over_http:.1f}",
            f"{100 * (statistics.median(ratios) - 1):+.1f} %",
            f"{100 * error:.1f} %",
            str(len(values)),
        )
    return table


def _generate(
    session: MedusaSession, prompt: str, num_tokens: int, streamed: bool
) -> tuple[float, str]:
    """Replies without HTTP; returns the seconds and the text."""
    options = GenerationOptions(max_new_tokens=num_tokens, ignore_eos=True)
    messages = [{"role": "user", "content": prompt}]
    start = time.perf_counter()
    if streamed:
        text = "".join(event.text for event in session.stream(messages, options))
    else:
        text = session.generate(messages, options).text
    return time.perf_counter() - start, text


def _ask(port: int, prompt: str, num_tokens: int, streamed: bool) -> tuple[float, str]:
    """Asks for the same reply over HTTP; returns the seconds and the text."""
    body = {
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": num_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": streamed,
    }
    content = json.dumps(body).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    answer = b""
    start = time.perf_counter()
    # The client shares the cores with the server, so it reads the answer only when it is whole.
    with socket.create_connection(("127.0.0.1", port)) as opened:
        opened.sendall(head.encode() + content)
        while part := opened.recv(1 << 16):
            answer += part
    seconds = time.perf_counter() - start
    content = parse_answer(answer)[1]
    if not streamed:
        return seconds, json.loads(content)["choices"][0]["message"]["content"]
    events = content.decode().split("\n\n")
    chunks = [json.loads(event[6:]) for event in events if event.startswith("data: {")]
    return seconds, "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)


@contextmanager
def _serve(session: MedusaSession) -> Iterator[int]:
    """Serves a session in a thread; yields the port."""
    sys.setswitchinterval(SWITCH_S)
    options = ServingOptions(port=0, max_sequences=1)
    app = make_app(session, options, log=lambda line: None)
    server = Server(app, options)
    with open_socket(options) as opened:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [opened]})
        thread.start()
        try:
            yield opened.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()


if __name__ == "__main__":
    sys.exit(main())
