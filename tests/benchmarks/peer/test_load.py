"""Contenders that answer several requests at the same time."""

import io

import pytest
from peer.load import PeerLoad, count_different, print_loads
from rich.console import Console


def make_load(name: str, token_times_s: list[list[float]], token: int = 1) -> PeerLoad:
    return PeerLoad(
        contender=name,
        threads=1,
        concurrency=2,
        round=0,
        token_ids=[[token] * len(times) for times in token_times_s],
        token_times_s=token_times_s,
        duration_s=max(times[-1] for times in token_times_s),
        peak_memory_bytes=10**6,
    )


def test_a_request_arrives_when_a_place_is_free() -> None:
    load = make_load("a", [[0.1, 0.5], [0.2, 0.4, 0.4], [0.7, 0.9], [0.6, 1.0]])
    assert load.first_token_s == pytest.approx([0.1, 0.2, 0.7 - 0.4, 0.6 - 0.5])
    assert load.between_tokens_s == pytest.approx([0.4, 0.1, 0.2, 0.4])
    assert load.tokens_per_s == 9.0


def test_replies_are_compared_with_plain_decoding_of_the_same_round() -> None:
    times = [[0.1, 0.2], [0.1, 0.4]]
    plain, other = make_load("x-plain", times), make_load("y", times, token=3)
    assert count_different([plain, make_load("x-medusa", times), other]) == 0
    assert count_different([make_load("x-medusa", times, token=2), plain]) == 2


def test_the_table_names_the_fastest_medusa() -> None:
    console = Console(width=120, record=True, file=io.StringIO())
    print_loads(
        [
            make_load("x-plain", [[0.1, 0.4], [0.1, 0.4]]),
            make_load("x-medusa", [[0.1, 0.2], [0.1, 0.2]]),
        ],
        console,
    )
    text = console.export_text()
    (line,) = (line for line in text.split("\n") if "x-plain" in line)
    assert [cell.strip() for cell in line.split("│")[2:6]] == [
        "10",
        "2.00x",
        "100.0, 100.0",
        "300.0, 300.0",
    ]
    assert "2 of 2 replies of Medusa have plain decoding's tokens" in text
