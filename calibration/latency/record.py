"""Measured step times as they are logged."""

from collections.abc import Iterable

import msgspec

LATENCY_FILE = "latency.jsonl"


class LatencyRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One sample: a few steps of a session, and the mean time of one of them.

    Attributes:
        machine: fingerprint of the machine and the engine's version.
        threads: for one step; None for the engine's choice.
        batch_size: sequences stepped together.
        context: tokens in the cache before the first step.
        num_nodes: nodes of the tree, the root included; 1 is plain decoding.
        round: from 1.
        num_steps: steps that were measured.
        step_ms: time of a whole step: heads, candidates, verify, acceptance, commit and text.
        engine_ms: the part of it that is spent inside the engine; the rest is the host's.
    """

    machine: str
    threads: int | None
    batch_size: int
    context: int
    num_nodes: int
    round: int
    num_steps: int
    step_ms: float
    engine_ms: float


def select_records(
    records: Iterable[LatencyRecord], machine: str, threads: int | None, batch_size: int
) -> list[LatencyRecord]:
    """Picks the records of one machine, number of threads and batch size."""
    kind = (machine, threads, batch_size)
    return [r for r in records if (r.machine, r.threads, r.batch_size) == kind]
