"""Where a section of the calibration report comes from."""

import shlex
import sys
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from medusa_trt.runtime.engines.machine import Machine


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a section comes from.

    Attributes:
        command: the command line, as typed.
        date: when the section was written, in ISO format.
        duration_s: seconds of measuring in the last run.
        is_complete: false after an interruption; the same command goes on from there.
        machine: what the measurements were made on.
    """

    command: str
    date: str
    duration_s: float
    is_complete: bool
    machine: Machine

    @classmethod
    def from_command(cls, machine: Machine, *, duration_s: float, is_complete: bool) -> "Origin":
        """Describes work that this process has just done."""
        return cls(
            command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            date=datetime.now(timezone.utc).astimezone().isoformat(timespec="seconds"),
            duration_s=round(duration_s, 3),
            is_complete=is_complete,
            machine=machine,
        )
