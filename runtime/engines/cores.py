"""The processor cores that this process may use."""

import os
from math import ceil
from pathlib import Path

_CPUS = Path("/sys/devices/system/cpu")
_CGROUPS = Path("/sys/fs/cgroup")


def usable_cores() -> int:
    """Counts the physical cores that this process may use: at most its container's quota.

    Two processors of one core count once, since they share its arithmetic.
    """
    if not hasattr(os, "sched_getaffinity"):  # Windows and macOS
        return os.cpu_count() or 1
    cores = {_core_of(processor) for processor in os.sched_getaffinity(0)}
    quota = cpu_quota(_CGROUPS, Path("/proc/self/cgroup"))
    return max(1, min(len(cores), len(cores) if quota is None else ceil(quota)))


def cpu_quota(root: Path, own_groups: Path) -> float | None:
    """Reads how many processors' time a container may take.

    Args:
        root: where the control groups are mounted, in either version.
        own_groups: the file that names this process's groups.

    Returns:
        The smallest quota of the process's group and those around it; None without one.
    """
    try:
        lines = own_groups.read_text().splitlines()
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
            quotas.append(_quota_of(folder))
            if folder == base:
                break
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota_of(folder: Path) -> float | None:
    """The quota that a control group states, in version 2 or 1."""
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


def _core_of(processor: int) -> str:
    """The processors that share a core with this one, as the kernel lists them."""
    try:
        return (_CPUS / f"cpu{processor}/topology/thread_siblings_list").read_text()
    except OSError:
        return str(processor)
