"""The slots of the cache: nothing running is overwritten, and known beginnings are found."""

import random

import pytest

from medusa_trt.runtime.slots import Slots


class Rows:
    """An engine's cache whose rows are tokens."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size, self.cache = batch_size, self
        self.rows: list[list[int]] = [[] for _ in range(batch_size)]

    def move(self, source: int, target: int, length: int) -> None:
        assert source != target and length <= len(self.rows[source])
        self.rows[target] = self.rows[source][:length]

    def exchange(self, first: int, second: int, length: int) -> None:
        assert length >= max(len(self.rows[first]), len(self.rows[second]))
        self.rows[first], self.rows[second] = self.rows[second], self.rows[first]


@pytest.mark.parametrize("batch_size", [1, 2, 5])
@pytest.mark.parametrize("seed", range(4))
def test_every_text_stays_in_the_rows_of_its_slot(batch_size: int, seed: int) -> None:
    rng = random.Random(seed)
    engine = Rows(batch_size)
    slots = Slots(engine)  # type: ignore[arg-type]
    running: list[list[int]] = []
    reading: tuple[int, list[int]] | None = None
    beginnings = [[rng.randrange(3) for _ in range(40)] for _ in range(3)]
    for _ in range(400):
        if reading is not None and rng.random() < 0.5:
            slot, text = reading
            engine.rows[slot] = list(text)
            slots.token_ids(slot)[:] = text
            joined = slots.join()
            assert joined == len(running) and engine.rows[joined] == text
            running.append(text)
            reading = None
        elif slots.has_free and rng.random() < 0.7:
            text = [*rng.choice(beginnings)[: rng.randrange(1, 40)], 9, rng.randrange(9)]
            slot = slots.begin(text)
            known = slots.token_ids(slot)
            assert engine.rows[slot][: len(known)] == known == text[: len(known)]
            reading = slot, text
        elif running:
            place = rng.randrange(len(running))
            slots.end_running(place)
            last = running.pop()
            if place < len(running):
                running[place] = last
        for place, text in enumerate(running):
            engine.rows[place].append(7)
            slots.token_ids(place).append(7)
            text.append(7)
            assert engine.rows[place] == text == slots.token_ids(place)


def test_an_ended_conversation_is_found_again_and_the_oldest_goes_first() -> None:
    engine = Rows(3)
    slots = Slots(engine)  # type: ignore[arg-type]

    def run(text: list[int]) -> int:
        slot = slots.begin(text)
        known = len(slots.token_ids(slot))
        slots.token_ids(slot)[:] = text
        engine.rows[slot] = list(text)
        slots.end_running(slots.join())
        return known

    texts = [[number] * 30 for number in range(3)]
    assert [run(text) for text in texts] == [0, 0, 0]
    assert [run([*text, 5]) for text in texts] == [30, 30, 30]
    assert run([8] * 30) == 0
    assert run([*texts[2], 6]) == 30 and run([*texts[1], 6]) == 30
    assert run([*texts[0], 6]) == 0


def test_a_prompt_copies_what_a_running_sequence_has() -> None:
    engine = Rows(2)
    slots = Slots(engine)  # type: ignore[arg-type]
    text = list(range(40))
    slots.token_ids(slots.begin(text))[:] = text
    engine.rows[0] = list(text)
    slots.join()
    assert slots.begin([*text[:30], 1]) == 1
    assert slots.token_ids(1) == text[:30] == engine.rows[1]
