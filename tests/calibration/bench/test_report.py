"""A file is replaced whole or not at all."""

from pathlib import Path

import pytest

from medusa_trt.calibration.bench.report import replaced_file
from medusa_trt.errors import MedusaError


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), replaced_file(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with (
        pytest.raises(MedusaError, match="cannot write"),
        replaced_file(tmp_path / "no" / "x") as t,
    ):
        t.write_text("new")
