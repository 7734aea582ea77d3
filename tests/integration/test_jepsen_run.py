"""A short run over real processes, and that it leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import fields
from pathlib import Path

import pytest

from jepsen_tests.hosts.capabilities import (
    Backend,
    Capabilities,
    choose_hosts,
    probe_capabilities,
)
from jepsen_tests.hosts.shell import HarnessError

ABILITIES = [field.name for field in fields(Capabilities) if field.type == "str"]


@pytest.fixture(scope="module")
def hosts() -> None:
    able = probe_capabilities()
    if able.backend is Backend.PROXY:
        pytest.skip(f"no network namespaces here: {able.netns or able.nft}")


def command(out: Path, *more: str) -> list[str]:
    start = [sys.executable, "-P", "-m", "cli", "jepsen", "run", "--workload", "W1"]
    return [*start, "--nemesis", "F1", "--target", "leader", "--out", str(out), *more]


def processes_of(marker: str) -> list[str]:
    """Pids of the processes that name it on their command lines."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if marker.encode() in (path / "cmdline").read_bytes():
                found.append(path.name)
    return found


def namespaces_of(pids: list[str]) -> set[Path]:
    """Named network namespaces that these processes live in; other runs have their own."""
    inodes = set()
    for pid in pids:
        with suppress(OSError):
            inodes.add(os.stat(f"/proc/{pid}/ns/net").st_ino)
    found = set()
    for path in Path("/run/netns").glob("dl*"):
        with suppress(OSError):
            if path.stat().st_ino in inodes:
                found.add(path)
    return found


@pytest.mark.usefixtures("hosts")
def test_an_isolated_leader_costs_no_acknowledged_append(tmp_path: Path) -> None:
    done = subprocess.run(
        command(tmp_path, "--time", "10", "--seed", "3", "--rate", "600", "--json"),
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-2000:]
    result = json.loads(done.stdout)
    folder = Path(result["folder"])
    assert result["verdict"] == "valid"
    assert result["figures"]["faultsThatBit"] >= 1
    assert result["figures"]["leaderChangesByFault"] >= 1
    for name in ("history.jsonl", "verdict.json", "faults.json", "gaps.tsv", "timeline.html"):
        assert (folder / name).stat().st_size > 0
    assert "<svg" in (folder / "timeline.html").read_text(encoding="utf-8")


def test_proxies_stand_in_for_namespaces_and_what_they_cannot_do_is_reported(
    tmp_path: Path,
) -> None:
    more = ("--nemesis", "F1,F6", "--hosts", "proxy", "--time", "10", "--rate", "600", "--json")
    done = subprocess.run(
        command(tmp_path, *more), capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 5, done.stderr[-2000:] + done.stdout[-2000:]
    result = json.loads(done.stdout)
    # Nothing is wrong with what was seen, but not all that was asked for was done.
    assert result["violations"] == []
    assert result["skippedFaults"] == {"F6": "not available here: needs namespaces"}
    assert result["unknownBecause"] == ["F6: not available here: needs namespaces"]
    assert result["figures"]["faultsThatBit"] >= 1
    assert result["figures"]["leaderChangesByFault"] >= 1
    versions = json.loads(Path(result["folder"], "versions.json").read_text(encoding="utf-8"))
    assert versions["machine"]["backend"] == "proxy"


def test_hosts_that_cannot_be_made_are_refused_with_the_reason(tmp_path: Path) -> None:
    able = Capabilities(**dict.fromkeys(ABILITIES, "no such luck"))
    assert able.backend is Backend.PROXY
    for wanted in ("netns", "user"):
        with pytest.raises(HarnessError, match="no such luck"):
            choose_hosts(able, wanted)
    everything = Capabilities(**dict.fromkeys(ABILITIES, ""))
    assert choose_hosts(everything, "auto").backend is Backend.NETNS_ROOT
    assert choose_hosts(everything, "user").backend is Backend.NETNS_USER
    assert choose_hosts(everything, "proxy").backend is Backend.PROXY
    done = subprocess.run(
        command(tmp_path, "--hosts", "moon"), capture_output=True, text=True, check=False
    )
    assert (done.returncode, "no such hosts: moon" in done.stderr) == (2, True)


@pytest.mark.usefixtures("hosts")
def test_sigterm_ends_a_run_and_leaves_nothing(tmp_path: Path) -> None:
    child = subprocess.Popen(
        command(tmp_path, "--time", "60"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        assert child.stderr is not None
        for line in child.stderr:
            if b"ok," in line:
                break
        spaces = namespaces_of(processes_of(str(tmp_path)))
        assert len(spaces) > 3  # of each replica, and of clients
        child.send_signal(signal.SIGTERM)
        assert child.wait(30) == 1
    finally:
        child.kill()
        child.wait()
        if child.stderr is not None:
            child.stderr.close()
    assert not [path for path in spaces if path.exists()]
    assert not processes_of(str(tmp_path))
