"""The report on the contenders' replies."""

import io

from hypothesis import given
from hypothesis import strategies as st
from peer.report import find_difference, is_identical, print_report
from rich.console import Console
from support.peer_replies import make_reply, make_report


@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)))
def test_the_first_difference(left: list[int], right: list[int]) -> None:
    index = find_difference(left, right)
    assert (index is None) == (left == right)
    if index is not None:
        assert left[:index] == right[:index] and left[index : index + 1] != right[index : index + 1]


def test_a_report_compares_prompt_by_prompt() -> None:
    replies = [
        make_reply(name, prompt, decode_s * (1 + prompt), token_ids)
        for prompt in (0, 1)
        for name, decode_s, token_ids in (
            ("medusa-trt-int8-plain", 0.04, [1, 2, 3]),
            ("medusa-trt-int8-medusa", 0.02, [1, 2, 3]),
            ("other", 0.08, [1, 2, 4]),
        )
    ]
    report = make_report(replies)
    assert is_identical(report)
    console = Console(width=160, record=True, file=io.StringIO())
    print_report(report, console)
    rows = [line.split("│") for line in console.export_text().split("\n") if "│" in line]
    lines = {row[1].strip(): "|".join(row) for row in rows}
    assert "2.00x" in lines["medusa-trt-int8-plain"]
    assert "4.00x" in lines["other"] and "0/2" in lines["other"]
    replies[-2] = make_reply("medusa-trt-int8-medusa", 1, 0.04, [1, 2, 9])
    assert not is_identical(make_report(replies))
