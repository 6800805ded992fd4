"""What machine this is: for manifests, reports and `potstill doctor`.

In: nothing. Out: plain facts read from the operating system. Imports nothing heavy.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

CONTAINER = Path("/sys/fs/cgroup")


def usable_cores() -> int:
    """Cores that this process may run on (not those of the whole machine)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_bytes() -> int | None:
    """Physical memory, or None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def available_memory_bytes() -> int | None:
    """Memory that new work may take: what is free or freed at once, within the limit of the
    container (cgroup); None where the system does not say."""
    found = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found += [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")]
        limit = _container_limit()
        if limit is not None:
            held = int((CONTAINER / "memory.current").read_text())
            found.append(max(0, limit - held))
    except (OSError, ValueError, IndexError):
        pass
    return min(found) if found else memory_bytes()


def most_memory_bytes() -> int | None:
    """The most that work can ever have here: physical memory, or the container's limit (cgroup) if
    that is lower; None where the system does not say."""
    found = [one for one in (memory_bytes(), _container_limit()) if one is not None]
    return min(found) if found else None


def _container_limit() -> int | None:
    try:
        limit = (CONTAINER / "memory.max").read_text().strip()
        return None if limit == "max" else int(limit)
    except (OSError, ValueError):
        return None


def processor() -> str:
    """The processor's own name."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def processor_flags() -> list[str]:
    """The instruction sets that matter here, of those the processor has (Linux, x86)."""
    wanted = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("flags"):
                present = set(line.split())
                return [flag for flag in wanted if flag in present]
    except OSError:
        pass
    return []


def own_peak_bytes() -> int:
    """Largest resident memory of this process since it began, or since that was reset.

    From /proc on Linux: what the system's usual call says begins there with what the process held
    before it became another program, and cannot be reset.
    """
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError, ValueError):
        return _most_held("RUSAGE_SELF")


def peak_memory_bytes() -> int:
    """Largest resident memory so far of this process, resets or not, or of one it waited for."""
    return max(map(_most_held, ("RUSAGE_SELF", "RUSAGE_CHILDREN")))


def _most_held(whose: str) -> int:
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return _most_held_by_psutil() if whose == "RUSAGE_SELF" else 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(getattr(resource, whose)).ru_maxrss * unit


def _most_held_by_psutil() -> int:
    """Of this process; 0 where psutil is not installed or the system does not say."""
    try:
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    except (ImportError, AttributeError):
        return 0


def resident_bytes(process: int) -> int:
    """Memory that a process holds now; 0 where the system does not say (or it has ended).

    Read from /proc on Linux, elsewhere by psutil where it is installed.
    """
    try:
        pages = Path(f"/proc/{process}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        pass
    try:
        import psutil

        return int(psutil.Process(process).memory_info().rss)
    except Exception:  # not installed, or its own errors for a process that is gone
        return 0


def processor_seconds() -> float:
    """Processor time so far of this process and of those it has waited for, all cores summed."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def free_disk_bytes(folder: Path) -> int:
    """Free space where `folder` is or would be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def gpus() -> list[str]:
    """NVIDIA's graphics processors with their memory, as its own tool names them."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    query = [tool, "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
    except (subprocess.SubprocessError, OSError):
        return []
    return found.stdout.strip().splitlines()


def describe() -> dict[str, Any]:
    """The machine in one record, for reports."""
    return {
        "system": platform.platform(terse=True),
        "processor": processor(),
        "instruction_sets": processor_flags(),
        "cores": usable_cores(),
        "memory_bytes": memory_bytes(),
        "python": platform.python_version(),
    }
