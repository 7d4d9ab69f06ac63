"""Measurements kept one a line as they are made: what a killed run has measured is not lost."""

from collections.abc import Iterator
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from medusa_trt.errors import CalibrationError

Record = TypeVar("Record", bound=msgspec.Struct)


class RecordLog(Generic[Record]):
    """A file of JSON lines that only grows. Half a last line, left by a kill, does not count."""

    def __init__(self, path: Path, type_: type[Record]) -> None:
        """Reads what is there; the file may be missing.

        Raises:
            CalibrationError: a line is damaged, or the file cannot be read.
        """
        self._path = path
        self.records: list[Record] = []
        try:
            data = path.read_bytes() if path.exists() else b""
        except OSError as error:
            raise CalibrationError(f"cannot read {path}: {error.strerror}") from error
        self._length = data.rfind(b"\n") + 1
        for number, line in enumerate(data[: self._length].splitlines(), start=1):
            try:
                self.records.append(msgspec.json.decode(line, type=type_))
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise CalibrationError(
                    f"line {number} of {path} is damaged ({error}): delete the line to measure it "
                    "again"
                ) from error

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    def append(self, record: Record) -> None:
        """Adds a record, on disk too.

        Raises:
            CalibrationError: it cannot be written.
        """
        line = msgspec.json.encode(record) + b"\n"
        try:
            self._path.parent.mkdir(exist_ok=True)
            with self._path.open("r+b" if self._path.exists() else "wb") as file:
                file.seek(self._length)
                file.write(line)
                file.truncate()
        except OSError as error:
            raise CalibrationError(f"cannot write {self._path}: {error.strerror}") from error
        self._length += len(line)
        self.records.append(record)
