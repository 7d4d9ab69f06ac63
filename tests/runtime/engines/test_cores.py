"""Cores that a process may use: its affinity, its container's quota."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from medusa_trt.errors import MedusaWarning
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.engines import cores
from medusa_trt.runtime.engines.cores import count_usable_cores, read_cpu_quota
from medusa_trt.runtime.engines.ort_cpu import OrtEngine

COUNT = (
    "from medusa_trt.runtime.engines.cores import count_usable_cores; print(count_usable_cores())"
)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="needs Linux")
def test_a_process_bound_to_one_processor_has_one_core() -> None:
    processor = min(os.sched_getaffinity(0))
    code = f"import os; os.sched_setaffinity(0, [{processor}]); {COUNT}"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert shown.stdout == "1\n"
    assert 1 <= count_usable_cores() <= len(os.sched_getaffinity(0))


def groups(folder: Path, *lines: str) -> Path:
    file = folder / "self"
    file.write_text("".join(f"{line}\n" for line in lines))
    return file


@pytest.mark.parametrize(
    ("limit", "quota"), [("150000 100000", 1.5), ("max 100000", None), ("", None)]
)
def test_the_quota_of_the_second_version(limit: str, quota: float | None, tmp_path: Path) -> None:
    folder = tmp_path / "work/inner"
    folder.mkdir(parents=True)
    (folder / "cpu.max").write_text(limit)
    assert read_cpu_quota(tmp_path, groups(tmp_path, "0::/work/inner")) == quota


def test_the_smallest_quota_around_a_group_holds(tmp_path: Path) -> None:
    (tmp_path / "outer/inner").mkdir(parents=True)
    (tmp_path / "outer/cpu.max").write_text("50000 100000")
    (tmp_path / "outer/inner/cpu.max").write_text("400000 100000")
    assert read_cpu_quota(tmp_path, groups(tmp_path, "0::/outer/inner")) == 0.5


def test_the_quota_of_the_first_version(tmp_path: Path) -> None:
    folder = tmp_path / "cpu/job"
    folder.mkdir(parents=True)
    (folder / "cpu.cfs_quota_us").write_text("200000\n")
    (folder / "cpu.cfs_period_us").write_text("100000\n")
    lines = ("4:memory:/other", "3:cpu,cpuacct:/job")
    assert read_cpu_quota(tmp_path, groups(tmp_path, *lines)) == 2


def test_a_machine_without_groups_has_no_quota(tmp_path: Path) -> None:
    assert read_cpu_quota(tmp_path, tmp_path / "missing") is None


def test_more_threads_than_cores_are_allowed_with_a_warning(tiny_bundle: Bundle) -> None:
    num_threads = count_usable_cores() + 1
    with pytest.warns(
        MedusaWarning, match=f"^{num_threads} threads share {count_usable_cores()} usable"
    ):
        OrtEngine(tiny_bundle, num_threads=num_threads).close()


def test_one_core_is_called_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "count_usable_cores", lambda: 1)
    with pytest.warns(MedusaWarning, match="2 threads share 1 usable core and wait"):
        assert cores.choose_num_threads(2) == 2
