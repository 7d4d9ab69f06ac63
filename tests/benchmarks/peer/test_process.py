"""A contender's process, with a worker that the tests bring."""

import os
import sys
from pathlib import Path

import pytest
from peer.contenders import Contender
from peer.environments import PeerError
from peer.process import PeerProcess

WORKER = """
def load(threads, first, extra=0):
    def start(prompt_ids, max_new_tokens):
        yield [first]
        rest = [sum(prompt_ids)] * (max_new_tokens - 1 + extra)
        while rest:
            yield rest[:2]
            rest = rest[2:]
    return ["pip"], start

def load_many(threads, first, concurrency):
    def start(prompts, max_new_tokens):
        for begin in range(0, len(prompts), concurrency):
            for _ in range(max_new_tokens):
                yield {begin + row: [first] for row in range(len(prompts[begin:][:concurrency]))}
    return ["pip"], start

def load_rows(threads, pasts):
    return ["pip"], lambda rows, past, is_prefill: lambda: None
"""


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "fake_worker.py").write_text(WORKER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def contender(**options: object) -> Contender:
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


def test_a_process_answers_several_prompts(worker: Path) -> None:
    with PeerProcess(contender(first=5), 1, worker / "log", concurrency=2) as process:
        replies = process.answer_many([[1], [2], [3]], 4)
        assert replies["token_ids"] == [[5] * 4] * 3
        first, second, third = replies["token_times_s"]
        assert first == second == sorted(first)
        assert first[-1] < third[0] <= third[-1] <= replies["duration_s"]


def test_a_process_times_steps(worker: Path) -> None:
    with PeerProcess(contender(pasts=[256]), 1, worker / "log") as process:
        reply = process.time_rows(8, 256, 3, False)
        assert len(reply["times_ms"]) == 3 and reply["peak_memory_bytes"] > 1e6
