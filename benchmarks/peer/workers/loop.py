"""Answers requests on standard input with one contender of `peers.py`, and times it.

    python loop.py WORKER '{"option": "value"}'

Runs in the contender's own environment: the standard library and that environment's packages, no
others. WORKER is a module beside this file with `load(**options)`, which returns the packages whose
versions to report, and `start(prompt_ids, max_new_tokens)`: what it returns gives the reply's
tokens in lists, as they are chosen. Time starts when `start` has returned.
"""

import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

Start = Callable[[Sequence[int], int], Iterable[Sequence[int]]]

WARM_UP_TOKENS = 8
"""A prompt of token 0, before each timed reply: it brings the weights back into the caches, and
leaves a contender that keeps prefixes nothing that the next prompt begins with."""


def main() -> None:
    """Says once that it is ready, then answers each line with a line."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print to standard output
    packages, start = importlib.import_module(sys.argv[1]).load(**json.loads(sys.argv[2]))
    answer(start, [0] * WARM_UP_TOKENS, 2)
    send(answers, {"versions": {package: metadata.version(package) for package in packages}})
    for line in sys.stdin:
        request = json.loads(line)
        answer(start, [0] * WARM_UP_TOKENS, 2)
        send(answers, answer(start, request["prompt_ids"], request["max_new_tokens"]))


def answer(start: Start, prompt_ids: Sequence[int], max_new_tokens: int) -> dict[str, Any]:
    """One reply: its tokens, seconds to the first and for the others, and steps after the first."""
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
        "peak_memory_bytes": peak_memory_bytes(),
    }


def peak_memory_bytes() -> int:
    """The most memory that this process has held; getrusage would count the parent's too."""
    status = Path("/proc/self/status").read_text(encoding="utf-8").split("\n")
    (line,) = (line for line in status if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def send(answers: TextIO, message: dict[str, Any]) -> None:
    """Writes one line."""
    answers.write(json.dumps(message) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
