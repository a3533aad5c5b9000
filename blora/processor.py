"""The share of the processor that this process may use, and as many threads as that share can run.

Numerical libraries start a thread for each core that they see. A container's limit of CPU time hides no core from them,
and threads beyond it use that time up by waiting for one another.
"""

import os
from pathlib import Path

__all__ = ["cpu_limit", "limit_threads", "usable_cores"]

# Where the kernel tells the control groups of this process, and where the groups' files are mounted.
GROUPS = Path("/proc/self/cgroup")
MOUNT = Path("/sys/fs/cgroup")


def usable_cores() -> int:
    """Return the number of cores that the system lets this process run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_limit(groups: Path = GROUPS, mount: Path = MOUNT) -> float | None:
    """Return the cores' worth of CPU time that control groups, such as a container's, allow; None without a limit.

    A limit of any enclosing group holds too. Inside a container the group that the kernel names may not exist; then its
    own is the one at the mount.

    Args:
        groups: file with this process's groups, a line for each hierarchy.
        mount: folder of version 2 of control groups; in version 1, of a folder `cpu`.
    """
    try:
        lines = groups.read_text().splitlines()
    except OSError:  # not Linux
        return None
    limits = []
    for line in lines:
        controllers, _, path = line.partition(":")[2].partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = mount / "cpu" if controllers else mount
        group = root / path.lstrip("/")
        limits += [_limit_of(one) for one in (group, *group.parents) if one.is_relative_to(root)]
    return min((limit for limit in limits if limit is not None), default=None)


def limit_threads() -> None:
    """Set OMP_NUM_THREADS to the container's limit of CPU time, if it is below the usable cores and the user has not.

    It takes effect on libraries that are loaded later, and on processes that this one starts.
    """
    limit = cpu_limit()
    if limit is not None and limit < usable_cores():
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, int(limit))))


def _limit_of(group: Path) -> float | None:
    """Return a control group's own limit in cores; None if it has none."""
    try:
        quota, period = (group / "cpu.max").read_text().split()  # version 2
    except OSError:
        try:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        except OSError:
            return None
    return None if quota in ("max", "-1") else int(quota) / int(period)
