import io
import os
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peer.contenders import Contender, contenders_for
from peer.environments import PeerError, Workshop
from peer.process import PeerProcess
from peer.report import PeerReply, PeerReport, first_difference, is_identical, print_report
from peers import drop_incomplete
from rich.console import Console

from medusa_trt.calibration.machine import Machine
from medusa_trt.errors import MedusaError

WORKER = """
def load(threads, first, extra=0):
    def start(prompt_ids, max_new_tokens):
        yield [first]
        rest = [sum(prompt_ids)] * (max_new_tokens - 1 + extra)
        while rest:
            yield rest[:2]
            rest = rest[2:]
    return ["pip"], start
"""


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "fake_worker.py").write_text(WORKER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def contender(**options: int) -> Contender:
    return Contender(
        name="fake", python=Path(sys.executable), worker="fake_worker", options=options
    )


def test_a_process_answers_and_stands_still_in_between(worker: Path) -> None:
    with PeerProcess(contender(first=5), 1, worker / "log") as process:
        assert process.versions.keys() == {"pip"}
        for prompt in ([1, 2], [3]):
            reply = process.answer(prompt, 6)
            assert reply["token_ids"] == [5] + [sum(prompt)] * 5
            assert reply["num_steps"] == 3
            assert reply["first_token_s"] >= 0 and reply["decode_s"] > 0
            assert reply["peak_memory_bytes"] > 1e6
        (pid,) = (pid for pid in children() if "fake_worker" in command_line(pid))
        assert Path(f"/proc/{pid}/stat").read_text().split(") ")[1].startswith("T")
    assert not Path(f"/proc/{pid}").exists()


def children() -> list[str]:
    task = Path(f"/proc/self/task/{os.getpid()}")
    return (task / "children").read_text().split()


def command_line(pid: str) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()


def test_a_process_that_cannot_start_says_why(worker: Path) -> None:
    with pytest.raises(PeerError, match=r"unexpected keyword argument 'wrong'.*exit code 1"):
        PeerProcess(contender(wrong=1), 1, worker / "log")


def test_a_reply_of_another_length_is_refused(worker: Path) -> None:
    with (
        PeerProcess(contender(first=5, extra=1), 1, worker / "log") as process,
        pytest.raises(PeerError, match="7 tokens instead of 6"),
    ):
        process.answer([1], 6)


def test_what_cannot_be_set_up_is_left_out_with_the_reason(tmp_path: Path) -> None:
    said: list[str] = []
    left_out: dict[str, str] = {}
    workshop = Workshop(tmp_path, said.append)
    with pytest.raises(MedusaError, match="no contender could be set up"):
        contenders_for(workshop, "no-such-model", [], 10, ["transformers"], left_out)
    assert left_out.keys() == {"transformers-fp32", "transformers-bf16"}
    assert all("no-such-model" in reason for reason in left_out.values())
    assert not list(tmp_path.iterdir())


def test_an_unknown_name_lists_those_that_exist(tmp_path: Path) -> None:
    with pytest.raises(MedusaError, match=r"choose from llama\.cpp-q4_0"):
        contenders_for(Workshop(tmp_path, print), "smollm2-135m", [], 10, ["nobody"], {})


@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)))
def test_the_first_difference(left: list[int], right: list[int]) -> None:
    index = first_difference(left, right)
    assert (index is None) == (left == right)
    if index is not None:
        assert left[:index] == right[:index] and left[index : index + 1] != right[index : index + 1]


def report_of(replies: list[PeerReply]) -> PeerReport:
    return PeerReport(
        command="peers.py",
        date="",
        model="tiny",
        num_tokens=3,
        prompt_lengths=[4, 4],
        machine=Machine.detect(),
        versions={},
        left_out={"absent": "not [here]"},
        is_complete=True,
        replies=replies,
    )


def reply(name: str, prompt: int, decode_s: float, token_ids: list[int]) -> PeerReply:
    return PeerReply(
        contender=name,
        threads=1,
        prompt=prompt,
        token_ids=token_ids,
        first_token_s=0.1,
        decode_s=decode_s,
        num_steps=1,
        peak_memory_bytes=10**6,
    )


def test_a_report_compares_prompt_by_prompt() -> None:
    replies = [
        reply(name, prompt, decode_s * (1 + prompt), token_ids)
        for prompt in (0, 1)
        for name, decode_s, token_ids in (
            ("medusa-trt-int8-plain", 0.04, [1, 2, 3]),
            ("medusa-trt-int8-medusa", 0.02, [1, 2, 3]),
            ("other", 0.08, [1, 2, 4]),
        )
    ]
    report = report_of(replies)
    assert is_identical(report)
    console = Console(width=160, record=True, file=io.StringIO())
    print_report(report, console)
    rows = [line.split("│") for line in console.export_text().split("\n") if "│" in line]
    lines = {row[1].strip(): "|".join(row) for row in rows}
    assert "2.00x" in lines["medusa-trt-int8-plain"]
    assert "4.00x" in lines["other"] and "0/2" in lines["other"]
    replies[-2] = reply("medusa-trt-int8-medusa", 1, 0.04, [1, 2, 9])
    assert not is_identical(report_of(replies))


def test_an_interruption_keeps_the_prompts_that_all_have_answered() -> None:
    report = report_of([reply(name, 0, 1, [1]) for name in ("a", "b")] + [reply("a", 1, 1, [1])])
    drop_incomplete(report)
    assert [(each.contender, each.prompt) for each in report.replies] == [("a", 0), ("b", 0)]
