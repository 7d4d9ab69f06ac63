"""Logs of measurements, one a line: a killed run loses none of its finished measurements."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from medusa_trt.errors import CalibrationError
from medusa_trt.files import replace_file

Record = TypeVar("Record", bound=msgspec.Struct)


class RecordLog(Generic[Record]):
    """A file of JSON lines. An unfinished last line, left by a kill, is ignored."""

    def __init__(self, path: Path, record_type: type[Record]) -> None:
        """Reads the file if it exists.

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
                self.records.append(msgspec.json.decode(line, type=record_type))
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise CalibrationError(
                    f"line {number} of {path} is damaged ({error}): delete the line to measure it "
                    "again"
                ) from error

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    def append(self, record: Record) -> None:
        """Adds a record here and in the file.

        Raises:
            CalibrationError: the file cannot be written.
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

    def forget(self, is_void: Callable[[Record], bool]) -> None:
        """Removes the records for which `is_void` is true, here and in the file.

        Raises:
            CalibrationError: the file cannot be written.
        """
        self.records = [record for record in self.records if not is_void(record)]
        data = b"".join(msgspec.json.encode(record) + b"\n" for record in self.records)
        self._length = len(data)
        if self._path.exists():
            with replace_file(self._path, CalibrationError) as temporary:
                temporary.write_bytes(data)
