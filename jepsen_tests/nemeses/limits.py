"""F12: too little CPU, memory or descriptors."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from jepsen_tests.hosts.capabilities import Capabilities
from jepsen_tests.hosts.shell import HarnessError, run_tool
from jepsen_tests.nemeses.base import ALL, FOLLOWER, LEADER, Bench, Injection, Nemesis

_CGROUP = Path("/sys/fs/cgroup")
_PERIOD_US = 100_000
# On top of what it has: pages keep the account they were taken on. A busy replica takes half a
# megabyte a second for its log alone, so that more than this would never be felt.
_MEMORY_BYTES = 1024 * 1024
# Nearly all of these are taken from the start: whatever is opened from now on is refused. (A limit
# at the number in use would leave the gaps between them.)
_DESCRIPTORS = 10


class LimitNemesis(Nemesis):
    """F12: 10 % of a CPU, hardly more memory than in use, ten descriptors."""

    name = "F12"
    title = "CPU, memory, descriptors"
    targets = (LEADER, LEADER, FOLLOWER, ALL)
    hold_s = (4.0, 6.0)

    def __init__(self) -> None:
        self._turn = 0

    def unavailable(self, capabilities: Capabilities) -> str:
        """Needs control groups."""
        return capabilities.cgroup or capabilities.prlimit

    def begin(self, bench: Bench) -> Injection:
        """Limits the target, in each way in turn."""
        group, target = bench.group(), self.choose_target(bench)
        shape = ("cpu", "descriptors", "memory")[self._turn % 3]
        self._turn += 1
        if shape == "memory" and target == ALL:
            target = LEADER
        chosen = bench.pick(group, target)
        injection = Injection(f"{shape} limit on {target}", chosen, group, {"shape": shape})
        pids = {replica: _pid(bench, replica) for replica in chosen}
        if shape == "descriptors":
            for pid in pids.values():
                run_tool(["prlimit", "--pid", str(pid), f"--nofile={_DESCRIPTORS}:"])
            injection.proof["descriptorsInUse"] = {
                name: _descriptors(pid) for name, pid in pids.items()
            }
            injection.details["pids"] = pids
            return injection
        for replica, pid in pids.items():
            path = _group_path(bench, shape, replica)
            path.mkdir(exist_ok=True)
            if shape == "cpu":
                (path / "cpu.cfs_period_us").write_text(str(_PERIOD_US))
                (path / "cpu.cfs_quota_us").write_text(str(_PERIOD_US // 10))
            else:
                # Only what it takes from now on counts: pages it has keep their old account.
                (path / "memory.limit_in_bytes").write_text(str(_MEMORY_BYTES))
            (path / "cgroup.procs").write_text(str(pid))
        return injection

    def end(self, bench: Bench, injection: Injection) -> None:
        """Lifts the limits; starts again whom they killed."""
        shape = injection.details.pop("shape")
        if shape == "descriptors":
            self._end_descriptors(bench, injection)
        else:
            evidence = {}
            for replica in injection.targets:
                path = _group_path(bench, shape, replica)
                evidence[replica] = _throttled(path) if shape == "cpu" else _hits(path)
                _leave(path)
            name = "periodsThrottled" if shape == "cpu" else "memoryLimitHits"
            injection.proof[name] = evidence
            # A starved leader sends so little that its followers have enough.
            injection.bit = any(evidence.values())
        for replica in injection.targets:
            if bench.cluster.pid(replica) is None:
                injection.proof[f"{replica} ended"] = bench.cluster.wait_gone(replica, 0.1)
            bench.cluster.start(replica)

    @staticmethod
    def _end_descriptors(bench: Bench, injection: Injection) -> None:
        """Proof: while the limit holds, a new connection gets no answer."""
        from cli import probe

        silent = {}
        for replica in injection.targets:
            address = bench.cluster.addressing.control(replica)
            answer = bench.network.call(
                lambda address=address: probe.broker_runtime(address, timeout_s=0.5)  # type: ignore[misc]
            )
            silent[replica] = answer is None
        for pid in injection.details.pop("pids").values():
            with contextlib.suppress(HarnessError):
                run_tool(["prlimit", "--pid", str(pid), "--nofile=4096:"])
        injection.proof["refusedConnections"] = silent
        injection.bit = all(silent.values())


def _pid(bench: Bench, replica: str) -> int:
    pid = bench.cluster.pid(replica)
    if pid is None:
        raise HarnessError(f"{replica} does not run")
    return pid


def _group_path(bench: Bench, controller: str, replica: str) -> Path:
    return _CGROUP / controller / f"dl{bench.run_id}-{replica}"


def _descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def _throttled(path: Path) -> int:
    text = (path / "cpu.stat").read_text(encoding="ascii")
    facts = dict(line.split() for line in text.splitlines())
    return int(facts.get("nr_throttled", 0))


def _hits(path: Path) -> int:
    return int((path / "memory.failcnt").read_text(encoding="ascii"))


def remove_groups(run_id: str) -> None:
    """Removes the control groups of a run."""
    for path in _CGROUP.glob(f"*/dl{run_id}-*"):
        _leave(path)


def _leave(path: Path) -> None:
    """Moves what is left to the parent and removes the group."""
    deadline = time.monotonic() + 3.0
    while path.exists() and time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            for pid in (path / "cgroup.procs").read_text(encoding="ascii").split():
                (path.parent / "cgroup.procs").write_text(pid)
        with contextlib.suppress(OSError):
            path.rmdir()
            return
        time.sleep(0.05)
