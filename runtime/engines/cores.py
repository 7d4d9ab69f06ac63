"""The processor cores that this process may use, and the number of threads for them."""

import os
import warnings
from math import ceil
from pathlib import Path

from medusa_trt.errors import EngineError, MedusaWarning

_MAX_THREADS = 512
_CPUS = Path("/sys/devices/system/cpu")
_CGROUPS = Path("/sys/fs/cgroup")


def choose_num_threads(requested: int | None) -> int:
    """Chooses the number of threads; by default one for each usable core.

    More threads are allowed, with a warning, because they wait for each other.

    Raises:
        EngineError: the requested number is out of range.
    """
    if requested is not None and not 1 <= requested <= _MAX_THREADS:
        raise EngineError(f"num_threads is {requested}: it must be 1 to {_MAX_THREADS}")
    num_cores = count_usable_cores()
    if requested is not None and requested > num_cores:
        cores = f"{num_cores} usable core{'s' * (num_cores > 1)}"
        warnings.warn(
            f"{requested} threads share {cores} and wait for each other: "
            f"--threads {num_cores} is faster",
            MedusaWarning,
            stacklevel=3,
        )
    return requested or num_cores


def count_usable_cores() -> int:
    """Counts the physical cores that this process may use, limited by its container's quota.

    Two logical processors of one core count once, because they share its arithmetic units.
    """
    if not hasattr(os, "sched_getaffinity"):  # Windows and macOS
        return os.cpu_count() or 1
    cores = {_read_core(processor) for processor in os.sched_getaffinity(0)}
    quota = read_cpu_quota(_CGROUPS, Path("/proc/self/cgroup"))
    return max(1, min(len(cores), len(cores) if quota is None else ceil(quota)))


def read_cpu_quota(root: Path, group_list: Path) -> float | None:
    """Reads how many processors' time a container may use.

    Args:
        root: folder where the control groups are mounted, of version 1 or 2.
        group_list: the file that names the groups of this process.

    Returns:
        The smallest quota of the process's group and its parents; None without a quota.
    """
    try:
        lines = group_list.read_text().splitlines()
    except OSError:
        return None
    quotas = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = root / "cpu" if controllers else root
        group = base / path.lstrip("/")
        for folder in (group, *group.parents):
            quotas.append(_read_group_quota(folder))
            if folder == base:
                break
    return min((quota for quota in quotas if quota is not None), default=None)


def _read_group_quota(folder: Path) -> float | None:
    """Reads the quota of one control group, of version 2 or 1."""
    try:
        limit, period = (folder / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            limit = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    try:
        return int(limit) / int(period) if int(limit) > 0 else None
    except ValueError:  # "max"
        return None


def _read_core(processor: int) -> str:
    """Reads which logical processors share a core with this one, as the kernel lists them."""
    try:
        return (_CPUS / f"cpu{processor}/topology/thread_siblings_list").read_text()
    except OSError:
        return str(processor)
