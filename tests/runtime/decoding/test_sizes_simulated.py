"""How well sizes of trees are chosen on machines whose step times are known."""

from math import exp, fsum, log

import pytest
from support.stand_ins.timed_engine import NUM_REPLIES, Simulation, StepMs, TimedEngine

from medusa_trt.runtime.decoding.step_times import StepTimes, TimedPoint


def flat(rows: int, now_s: float) -> float:
    return 5 + 0.02 * rows


def usual(rows: int, now_s: float) -> float:
    """An EPYC with AVX512-VNNI, one thread."""
    return 4.7 + 0.3 * rows + 0.013 * rows**2


def stairs(rows: int, now_s: float) -> float:
    return 5 + 2.5 * ((rows - 1) // 4)


def steep(rows: int, now_s: float) -> float:
    return 3.5 + 1.5 * rows


def proportional(rows: int, now_s: float) -> float:
    return 5.0 * rows


MACHINES = [flat, usual, stairs, steep, proportional]


def mean(values: list[float]) -> float:
    return exp(fsum(map(log, values)) / len(values))


class KnownTimes(StepTimes):
    """The curve without noise, which nothing changes."""

    def __init__(self, step_ms: StepMs) -> None:
        super().__init__([TimedPoint(rows, step_ms(rows, 0), 100) for rows in range(1, 33)])

    def add(self, rows: int, past: float, ms: float) -> None:
        pass


def run_replies(
    monkeypatch: pytest.MonkeyPatch, engine: TimedEngine, times: StepTimes | None = None
) -> list[float]:
    """Speed of each reply over plain decoding."""
    simulation = Simulation(monkeypatch, engine)
    if times is not None:
        simulation.decoder.drafter.times = times
    return [simulation.run_reply(reply) for reply in range(2 * NUM_REPLIES)]


@pytest.mark.parametrize("step_ms", MACHINES)
def test_sizes_are_nearly_as_good_as_with_known_times(
    monkeypatch: pytest.MonkeyPatch, step_ms: StepMs
) -> None:
    """Times are noisy and have spikes; from the second reply on the loss is at most 3 %."""
    known = run_replies(monkeypatch, TimedEngine(step_ms), KnownTimes(step_ms))
    for seed in range(3):
        engine = TimedEngine(step_ms, noise=0.04, spikes=0.004, seed=seed)
        noise = exp(0.04**2 / 2) * (1 + 3 * 0.004)
        learned = run_replies(monkeypatch, engine)
        assert mean(learned[1:]) * noise > 0.97 * mean(known[1:])


@pytest.mark.parametrize("step_ms", MACHINES)
def test_a_first_reply_is_hardly_slower_than_plain(
    monkeypatch: pytest.MonkeyPatch, step_ms: StepMs
) -> None:
    for reply in range(NUM_REPLIES):
        simulation = Simulation(monkeypatch, TimedEngine(step_ms, noise=0.04, seed=reply))
        assert simulation.run_reply(reply) > 0.9


def test_short_first_replies_are_faster_than_plain_where_drafts_pay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    replies = []
    for reply in range(NUM_REPLIES):
        simulation = Simulation(monkeypatch, TimedEngine(usual, noise=0.04, seed=reply))
        replies.append(simulation.run_reply(reply, 16))
    assert mean(replies) > 1.3 and min(replies) > 0.95


def test_a_changing_load_changes_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other programs double all times for two seconds in every four."""

    def loaded(rows: int, now_s: float) -> float:
        return usual(rows, 0) * (1 if now_s % 4 < 2 else 2)

    known = run_replies(monkeypatch, TimedEngine(usual), KnownTimes(usual))
    learned = run_replies(monkeypatch, TimedEngine(loaded, heads_ms=0.6, noise=0.04))
    assert mean(learned[1:]) > 0.95 * mean(known[1:])


def test_sizes_follow_a_curve_that_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the fourth second on, rows cost much more, and from the eighth little again."""

    def changing(rows: int, now_s: float) -> float:
        return steep(rows, 0) if 4 < now_s < 8 else flat(rows, 0)

    simulation = Simulation(monkeypatch, TimedEngine(changing, noise=0.04))
    means = []
    for end_s in (4, 8, 16):
        begin = len(simulation.engine.sizes)
        while simulation.engine.now_s < end_s:
            simulation.run_reply(3)
        used = simulation.engine.sizes[begin:]
        means.append(fsum(used[len(used) // 2 :]) / len(used[len(used) // 2 :]))
    assert means[0] > 8 and means[1] < 4 and means[2] > 8


def test_trials_cost_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without noise, what other sizes cost stays below their share of the time."""
    for step_ms in MACHINES:
        known = run_replies(monkeypatch, TimedEngine(step_ms), KnownTimes(step_ms))
        learned = run_replies(monkeypatch, TimedEngine(step_ms))
        assert mean(learned[4:]) > 0.975 * mean(known[4:])


def test_a_measured_curve_is_used_from_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    simulation = Simulation(monkeypatch, TimedEngine(flat))
    points = [TimedPoint(rows, flat(rows, 0), 100) for rows in (1, 8, 16, 32)]
    simulation.decoder.drafter.times = StepTimes(points)
    simulation.run_reply(0, 16)
    assert simulation.engine.sizes[0] > 8
