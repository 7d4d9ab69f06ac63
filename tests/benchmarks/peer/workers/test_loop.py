"""The loop that times a contender's replies."""

import io
import json
from collections.abc import Callable, Iterator, Sequence

from peer.workers.loop import answer, read_peak_memory_bytes, send, time_rows


def start(prompt_ids: Sequence[int], max_new_tokens: int) -> Iterator[list[int]]:
    yield [sum(prompt_ids)]
    yield [1, 2]
    yield [3]


def test_a_reply_is_timed_from_its_first_token() -> None:
    reply = answer(start, [4, 5], 4)
    assert reply["token_ids"] == [9, 1, 2, 3] and reply["num_steps"] == 2
    assert 0 <= reply["first_token_s"] < 1 and 0 <= reply["decode_s"] < 1
    assert reply["peak_memory_bytes"] == read_peak_memory_bytes() > 10**6


def test_a_message_is_one_line() -> None:
    output = io.StringIO()
    send(output, {"text": "a\nb"})
    assert output.getvalue().count("\n") == 1 and json.loads(output.getvalue())["text"] == "a\nb"


def test_steps_are_timed_after_one_that_warms_up() -> None:
    done: list[str] = []

    def prepare(rows: int, past: int, is_prefill: bool) -> Callable[[], object]:
        done.append(f"prepare {rows} {past} {is_prefill}")
        return lambda: done.append("step")

    reply = time_rows(prepare, 4, 256, repeats=2, is_prefill=False)
    assert done == ["prepare 4 256 False", "step"] * 3 and len(reply["times_ms"]) == 2
    done.clear()
    assert len(time_rows(prepare, 512, 0, repeats=1, is_prefill=True)["times_ms"]) == 1
    assert done == ["prepare 512 0 True", "step"]
