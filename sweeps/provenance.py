"""Where numbers came from: versions and hardware. Results get published, so no host, user or path is named."""

import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from importlib import metadata
from pathlib import Path

_PACKAGES = ("numpy", "torch", "ray")
_SOURCE = Path(__file__).resolve().parent


@lru_cache(maxsize=1)
def provenance() -> Mapping[str, str]:
    """This process's versions, hardware, source commit and the time (UTC) of its first call."""
    return {
        "python": platform.python_version(),
        **{name: version for name in _PACKAGES if (version := _version(name))},
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": cpu_model(),
        "cores": str(len(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else str(os.cpu_count()),
        **_commit(),
        "start_time_utc": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def cpu_model() -> str:
    """The processor's trade name where the system tells it, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> dict[str, str]:
    """Commit of the checkout this file is in, and whether its tracked files differ from it; empty outside of one."""
    if not (_SOURCE.parent / ".git").exists():
        return {}
    commit = _git("rev-parse", "HEAD")
    status = _git("status", "--porcelain", "--untracked-files=no")
    return {"git_commit": commit, "git_dirty": str(bool(status)).lower()} if commit else {}


def _git(*arguments: str) -> str:
    """Standard output of a git command, empty if it fails or there is no git."""
    try:
        done = subprocess.run(
            ["git", "-C", str(_SOURCE), *arguments], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
