"""Answers requests on standard input with one contender of `peers.py`, and times each reply.

    python loop.py WORKER '{"option": "value"}'

A contender is one of the runtimes that `peers.py` compares. This script runs in the contender's
environment, so it imports only the standard library. WORKER is a module beside this file. Its
`load(**options)` returns the names of packages, whose versions are reported, and a function
`start(prompt_ids, max_new_tokens)`. `start` returns an iterator over lists of tokens, one list for
each step. The time starts when `start` has returned.

If the options name a `concurrency`, the module's `load_many(**options)` is called instead. Its
function `start(prompts, max_new_tokens)` answers all prompts, at most that many at the same time,
in their order. It returns an iterator with a dictionary for each step: the new tokens by the index
of the prompt.

If they name `pasts`, lengths of texts that are in the KV cache, single steps are timed. The
module's `load_rows(**options)` returns a function `prepare(rows, past, is_prefill)`, which does
what is not timed and returns a function that computes a step of so many rows. Each row of a step
gets its next token, in a prefill only the last one.
"""

import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

Prepare = Callable[[int, int, bool], Callable[[], object]]
Start = Callable[[Sequence[int], int], Iterable[Sequence[int]]]
StartMany = Callable[[Sequence[Sequence[int]], int], Iterable[Mapping[int, Sequence[int]]]]

WARM_UP_TOKENS = 8
"""Length of the prompt of zeros that is answered before each timed reply.

It loads the weights into the CPU caches. It also makes contenders that keep the KV cache of the
last prompt drop it, so that every timed prompt is prefilled as a whole."""


def main() -> None:
    """Loads the worker, sends its versions, then answers each request line with one line."""
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Sends the prints of libraries to standard error.
    options, worker = json.loads(sys.argv[2]), importlib.import_module(sys.argv[1])
    packages, reply = load(worker, options)
    send(output, {"versions": {package: metadata.version(package) for package in packages}})
    for line in sys.stdin:
        send(output, reply(json.loads(line)))


def load(
    worker: Any, options: dict[str, Any]
) -> tuple[list[str], Callable[[dict[str, Any]], dict[str, Any]]]:
    """Loads the worker; returns its packages, and a function that answers a request."""
    if "pasts" in options:
        packages, prepare = worker.load_rows(**options)
        return packages, lambda request: time_rows(prepare, **request)
    concurrency = options.get("concurrency")
    packages, start = (worker.load if concurrency is None else worker.load_many)(**options)

    def reply(prompts: Sequence[Sequence[int]], max_new_tokens: int) -> dict[str, Any]:
        if concurrency is None:
            return answer(start, prompts[0], max_new_tokens)
        return answer_many(start, prompts, max_new_tokens)

    warm_up = [[0] * WARM_UP_TOKENS] * (concurrency or 1)
    reply(warm_up, 2)

    def warm_up_and_reply(request: dict[str, Any]) -> dict[str, Any]:
        reply(warm_up, 2)
        return reply(**request)

    return packages, warm_up_and_reply


def answer(start: Start, prompt_ids: Sequence[int], max_new_tokens: int) -> dict[str, Any]:
    """Generates one reply; returns the fields of `PeerReply` that are measured here."""
    reply = iter(start(prompt_ids, max_new_tokens))
    start_s = time.perf_counter()
    token_ids = list(next(reply))
    first_s = time.perf_counter()
    num_steps = 0
    for step in reply:
        token_ids += step
        num_steps += 1
    end_s = time.perf_counter()
    return {
        "token_ids": [int(token) for token in token_ids],
        "first_token_s": first_s - start_s,
        "decode_s": end_s - first_s,
        "num_steps": num_steps,
        "peak_memory_bytes": read_peak_memory_bytes(),
    }


def answer_many(
    start: StartMany, prompts: Sequence[Sequence[int]], max_new_tokens: int
) -> dict[str, Any]:
    """Answers many prompts; returns the fields of `PeerLoad` that are measured here."""
    steps = iter(start(prompts, max_new_tokens))
    start_s = time.perf_counter()
    tokens: list[list[int]] = [[] for _ in prompts]
    times: list[list[float]] = [[] for _ in prompts]
    for step in steps:
        now = time.perf_counter() - start_s
        for index, token_ids in step.items():
            tokens[index] += [int(token) for token in token_ids]
            times[index] += [now] * len(token_ids)
    return {
        "token_ids": tokens,
        "token_times_s": times,
        "duration_s": time.perf_counter() - start_s,
        "peak_memory_bytes": read_peak_memory_bytes(),
    }


def time_rows(
    prepare: Prepare, rows: int, past: int, repeats: int, is_prefill: bool
) -> dict[str, Any]:
    """Times a step several times; if it is no prefill, the first time warms up."""
    times_ms = []
    for _ in range(repeats if is_prefill else repeats + 1):
        step = prepare(rows, past, is_prefill)
        start_s = time.perf_counter()
        step()
        times_ms.append(1e3 * (time.perf_counter() - start_s))
    return {"times_ms": times_ms[-repeats:], "peak_memory_bytes": read_peak_memory_bytes()}


def read_peak_memory_bytes(process: Path = Path("/proc/self")) -> int:
    """Reads the peak resident memory of a process, given its folder below /proc.

    `getrusage` is not used, since its figure includes the memory of the parent process.
    """
    status = (process / "status").read_text(encoding="utf-8").split("\n")
    (line,) = (line for line in status if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def send(output: TextIO, message: dict[str, Any]) -> None:
    """Writes a message as one line."""
    output.write(json.dumps(message) + "\n")
    output.flush()


if __name__ == "__main__":
    main()
