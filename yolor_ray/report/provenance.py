"""Collect the provenance of a measurement: command, commit and machine."""

import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

CPU_INFO = Path("/proc/cpuinfo")


def available_cores() -> int:
    """Return the number of CPU cores that this process may use, 1 or more: its CPU affinity where the platform has one."""
    if hasattr(os, "sched_getaffinity"):
        return max(len(os.sched_getaffinity(0)), 1)
    return os.cpu_count() or 1


def machine() -> dict[str, Any]:
    """Return the hardware and software of this process, and the load of the machine over the last minute."""
    memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": _cpu_name(),
        "cores": available_cores(),
        "memory_gb": round(memory_bytes / 1e9, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load_1m": round(os.getloadavg()[0], 2),
        "compute_threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "ray": version("ray"),
    }


def _cpu_name() -> str:
    lines = CPU_INFO.read_text().splitlines() if CPU_INFO.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def command() -> str:
    """Return the command line of this process."""
    return shlex.join(["python", *sys.argv])


def commit() -> str:
    """Return the commit of this code: with `+` when files differ from the commit, `unknown` outside a repository."""
    revision = _git("rev-parse", "--short=12", "HEAD")
    if not revision:
        return "unknown"
    return revision + ("+" if _git("status", "--porcelain") else "")


def _git(*arguments: str) -> str:
    try:
        process = subprocess.run(["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return process.stdout.strip()
