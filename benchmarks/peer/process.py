"""The processes of contenders, which are stopped except while they answer."""

import json
import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from peer.contenders import Contender
from peer.environments import WORKERS, PeerError, read_last_line


class MeasuredProcess:
    """A contender in a process group of its own, which is stopped except while it is measured.

    In between a signal stops the group, so that none of its threads can use a core.
    """

    def __init__(self, command: Sequence[str], log: Path, **streams: Any) -> None:
        """Starts the process.

        Args:
            command: its command line.
            log: file for its output.
            streams: other standard streams, as `subprocess.Popen` takes them.

        Raises:
            PeerError: there is no such command.
        """
        self._log, self._file = log, log.open("wb")
        try:
            self._process = subprocess.Popen(
                command,
                stderr=self._file,
                text=True,
                start_new_session=True,
                **{"stdout": self._file} | streams,
            )
        except OSError as error:
            self._file.close()
            raise PeerError(f"cannot start {command[0]}: {error.strerror}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._end()

    @property
    def pid(self) -> int:
        """Number of the process and of its group."""
        return self._process.pid

    def _go_on(self) -> None:
        os.killpg(self.pid, signal.SIGCONT)

    def _stop(self) -> None:
        """Stops the group, and waits until its first process has stopped or died."""
        os.killpg(self.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def _describe_death(self) -> str:
        code = self._process.wait()
        return f"{read_last_line(self._log)} (exit code {code}, log: {self._log})"

    def _end(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # works on a stopped process too
        self._process.wait()
        for file in (self._process.stdin, self._process.stdout, self._file):
            if file is not None:
                file.close()


class PeerProcess(MeasuredProcess):
    """Exchanges JSON lines with `workers/loop.py`."""

    def __init__(
        self, contender: Contender, threads: int, log: Path, concurrency: int | None = None
    ) -> None:
        """Starts the process and waits until it is ready.

        Args:
            contender: what the process runs.
            threads: its number of threads.
            log: file for its standard error.
            concurrency: most requests at the same time, for `answer_many`; None for `answer`.

        Raises:
            PeerError: the process cannot start.
        """
        several = {} if concurrency is None else {"concurrency": concurrency}
        options = json.dumps({**contender.options, "threads": threads, **several})
        super().__init__(
            [str(contender.python), str(WORKERS / "loop.py"), contender.worker, options],
            log,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        try:
            self.versions: dict[str, str] = self._read()["versions"]
        except BaseException:
            self._end()
            raise
        self._stop()

    def answer(self, prompt_ids: list[int], max_new_tokens: int) -> dict[str, Any]:
        """Asks for one reply; see `loop.answer`.

        Raises:
            PeerError: the process died, or the reply has another number of tokens.
        """
        reply = self._ask({"prompts": [prompt_ids], "max_new_tokens": max_new_tokens})
        _check_length(reply["token_ids"], max_new_tokens)
        return reply

    def answer_many(self, prompts: Sequence[list[int]], max_new_tokens: int) -> dict[str, Any]:
        """Asks for replies to all prompts, see `loop.answer_many`.

        Raises:
            PeerError: the process died, or a reply has another number of tokens.
        """
        replies = self._ask({"prompts": prompts, "max_new_tokens": max_new_tokens})
        for token_ids in replies["token_ids"]:
            _check_length(token_ids, max_new_tokens)
        return replies

    def time_rows(self, rows: int, past: int, repeats: int, is_prefill: bool) -> dict[str, Any]:
        """Asks for the times of a step; see `loop.time_rows`.

        Raises:
            PeerError: the process died.
        """
        request = {"rows": rows, "past": past, "repeats": repeats, "is_prefill": is_prefill}
        return self._ask(request)

    def use_real_time(self) -> None:
        """Gives all threads of the process real-time priority, for which root is needed.

        Raises:
            PeerError: this user may not.
        """
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            try:
                os.sched_setscheduler(int(task.name), os.SCHED_RR, os.sched_param(1))
            except PermissionError as error:
                raise PeerError("only root may use real-time priority: run as root") from error

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        self._go_on()
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise PeerError(self._describe_death()) from error
        reply = self._read()
        self._stop()
        return reply

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise PeerError(self._describe_death())
        message: dict[str, Any] = json.loads(line)
        return message


def _check_length(token_ids: Sequence[int], max_new_tokens: int) -> None:
    if len(token_ids) != max_new_tokens:
        raise PeerError(f"{len(token_ids)} tokens instead of {max_new_tokens}")
