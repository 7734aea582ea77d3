"""What a figure is worthless without: the machine and the versions it was measured with."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_LIBRARIES = ("uvloop", "msgspec", "lmdb", "pysyncobj")


class DiskShortError(SystemExit):
    """The disk has no room for what is to be measured. Nothing was started."""


def stop_when_told() -> None:
    """Lets SIGTERM end the program through every `finally`, so that no server stays behind.

    As Ctrl-C does: an event loop turns that into a cancellation, whereas an exception out of a
    handler would end whichever callback of the client happens to run, and nothing else.
    """

    def end(*_: object) -> None:
        signal.raise_signal(signal.SIGINT)

    signal.signal(signal.SIGTERM, end)
    # A shell starts what runs in the background with this ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def facts() -> dict[str, object]:
    """Returns the machine, the system and the versions, for JSON."""
    return {
        "cpu": _cpu_model(),
        "processors": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "libraries": {name: importlib.metadata.version(name) for name in _LIBRARIES},
        "commit": _commit(),
        "load_average": [round(value, 2) for value in os.getloadavg()],
        "measured_at": time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime()),
    }


def describe(machine: dict[str, object]) -> str:
    """Returns the facts in a line for people."""
    libraries = machine["libraries"]
    assert isinstance(libraries, dict)
    versions = ", ".join(f"{name} {version}" for name, version in libraries.items())
    return (
        f"{machine['processors']} x {machine['cpu']}, {machine['memory_gib']} GiB, "
        f"Linux {machine['kernel']}, Python {machine['python']}, {versions}; "
        f"commit {machine['commit']}, {machine['measured_at']}, "
        f"load before {machine['load_average']}"
    )


def need_disk(directory: Path, wanted_bytes: float, what: str) -> None:
    """Refuses to begin when the disk is short: a full one would spoil more than a figure.

    Raises:
        DiskShortError: Less is free than wanted and 2 GB.
    """
    free = shutil.disk_usage(directory).free
    wanted = wanted_bytes + 2e9
    if free < wanted:
        raise DiskShortError(
            f"error: {what} needs {wanted / 1e9:.1f} GB in {directory}, {free / 1e9:.1f} are free"
        )


def allow_many_files() -> None:
    """Raises the limit of open files as far as allowed, for this process and those it starts."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def _commit() -> str:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=10"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"
