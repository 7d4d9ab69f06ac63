"""Replies as the benchmark measures them, made by hand."""

from dataclasses import replace
from typing import Any

from medusa_trt.calibration.bench.measurement import ReplyRow
from medusa_trt.calibration.bench.options import BenchOptions
from medusa_trt.calibration.bench.report import BenchReport, BenchSetup
from medusa_trt.calibration.bench.summary import noise_from_rows, summarize
from medusa_trt.runtime.engines.machine import Machine

GREEDY = BenchOptions(compared=("greedy",))


def row(
    mode: str,
    *,
    prompt_id: str = "a",
    turn: int = 1,
    round: int = 1,
    category: str = "x",
    lengths: tuple[int, ...] = (1, 1, 1, 1),
    decode_s: float = 1.0,
    engine_s: float = 0.5,
    prefill_s: float = 0.1,
    tokens: tuple[int, ...] = (1, 2, 3, 4, 5),
) -> ReplyRow:
    """A reply of five tokens, four of them after the first."""
    return ReplyRow(
        round=round,
        prompt_id=prompt_id,
        category=category,
        turn=turn,
        mode=mode,
        finish_reason="length",
        prompt_tokens=3,
        cached_tokens=0,
        new_tokens=len(tokens),
        prefill_s=prefill_s,
        decode_s=decode_s,
        engine_s=engine_s,
        accept_lengths=lengths,
        token_ids=tokens,
    )


def both(prompt_id: str, plain_s: float, medusa_s: float, **changes: Any) -> list[ReplyRow]:
    """The same reply in both greedy modes; Medusa takes two steps, of one and three tokens."""
    plain = row("greedy plain", prompt_id=prompt_id, decode_s=plain_s)
    medusa = row("greedy Medusa", prompt_id=prompt_id, decode_s=medusa_s, lengths=(1, 3))
    return [replace(reply, **changes) for reply in (plain, medusa)]


def report_of(rows: list[ReplyRow], free_cores: float | None = None) -> BenchReport:
    """A report of these measurements, while other work left so many cores."""
    setup = BenchSetup(
        bundle="b",
        model="m",
        target="ort-cpu",
        precision="fp32",
        num_heads=3,
        tree="t with 4 nodes",
        prompts="MT-bench",
        num_prompts=1,
        rounds=1,
        max_new_tokens=5,
        max_length=100,
        threads=None,
        temperature=0.7,
        seed=0,
        posterior_threshold=0.09,
        posterior_alpha=0.3,
    )
    return BenchReport(
        command="medusa-trt bench b",
        date="2026-01-01T00:00:00+00:00",
        duration_s=1,
        is_complete=True,
        num_prompts_done=1,
        peak_memory_bytes=10**6,
        setup=setup,
        machine=Machine.detect(),
        noise=noise_from_rows(rows, GREEDY.modes, free_cores, setup.threads),
        summary=summarize(rows, GREEDY.modes),
    )
