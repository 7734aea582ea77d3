"""F7: a replica falls behind what its leader still has, and gets a snapshot while things break."""

from __future__ import annotations

import contextlib
import re
import signal
import time
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from jepsen_tests.hosts.capabilities import Backend, Capabilities
from jepsen_tests.nemeses.base import FOLLOWER, LEADER, Bench, Injection, Nemesis
from jepsen_tests.nemeses.partitions import both_ways

SEGMENT_BYTES = 128 * 1024
_TRIM_S = 15.0
_INSTALL_S = 15.0
_POLL_S = 0.05
# More than the load needs, or the snapshot would have to wait for the end of the narrowness.
_SENDING_RATE = "8mbit"
_INSTALLED = re.compile(r"snapshot installed: applied_index=(\d+)")
_RECEIVING = re.compile(r"receiving a snapshot: applied_index=(\d+)")
_CUT, _PAUSE, _KILL = "cut off", "stopped", "killed"
_CALM, _NARROW, _KILLED, _LEADER_CUT = (
    "",
    "over a narrow link",
    "killed while receiving",
    "sender cut off while sending",
)


class SnapshotNemesis(Nemesis):
    """F7: the target is away until the leader has dropped the log that it would need.

    A leader is cut off from its peers, so that what clients still give it must be undone by the
    snapshot; a follower is cut off, stopped or killed. Each in turn, and so is what happens while
    the snapshot arrives: nothing, a narrow link, the receiver's death, a cut of the sender.

    Proof: the target's log says that it has installed a snapshot.
    """

    name = "F7"
    title = "compaction and a snapshot during other faults"
    targets = (LEADER, FOLLOWER)
    hold_s = (3.5, 5.0)
    settings: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "store": {"segment_bytes": SEGMENT_BYTES, "retention_bytes": 4 * SEGMENT_BYTES},
        "timing": {"retention_check_s": 0.3, "retention_wait_s": 1.5},
        # What is on its way already arrives after the heal, however old: little of the log.
        "raft": {"window_bytes": SEGMENT_BYTES, "append_bytes_max": SEGMENT_BYTES // 2},
    }

    def __init__(self) -> None:
        self._turn = 0

    def unavailable(self, capabilities: Capabilities) -> str:
        """Works everywhere."""
        return ""

    def choose_target(self, bench: Bench) -> str:
        """Leaders and followers alternate, unless one is asked for."""
        return bench.target or self.targets[self._turn % len(self.targets)]

    def begin(self, bench: Bench) -> Injection:
        """Takes the target away from its group."""
        group, target = bench.group(), self.choose_target(bench)
        replica = bench.pick(group, target)[0]
        turn, self._turn = self._turn, self._turn + 1
        how = _CUT if target == LEADER else (_PAUSE, _KILL, _CUT)[turn // 2 % 3]
        meanwhile = (_CALM, _NARROW, _KILLED, _LEADER_CUT)[turn % 4]
        if meanwhile == _NARROW and bench.capabilities.backend is Backend.PROXY:
            meanwhile = _CALM
        variant = " ".join(("snapshot for a", target, how, meanwhile)).strip()
        details = {"how": how, "meanwhile": meanwhile, "installed": len(_installs(bench, replica))}
        injection = Injection(variant, [replica], group, details)
        if how == _CUT:
            peers = [member for member in bench.members(group) if member != replica]
            details["token"] = bench.cuts.add(both_ways([replica], peers))
        elif how == _PAUSE:
            bench.cluster.signal(replica, signal.SIGSTOP)
        else:
            bench.cluster.kill(replica)
        return injection

    def end(self, bench: Bench, injection: Injection) -> None:
        """Waits until the log is too short, lets the target back, and breaks something else."""
        replica, details = injection.targets[0], injection.details
        before = details.pop("installed")
        try:
            too_short = _wait(lambda: _is_beyond(bench, injection), _TRIM_S)
        finally:
            self._let_back(bench, replica, details)
        injection.proof["logTooShort"] = too_short
        if too_short:
            self._disturb(bench, injection, details.pop("meanwhile"))
        _wait(lambda: len(_installs(bench, replica)) > before, _INSTALL_S)
        self._calm(bench, injection)
        installs = _installs(bench, replica)[before:]
        injection.proof["snapshotsInstalled"] = installs
        injection.bit = bool(installs)

    @staticmethod
    def _let_back(bench: Bench, replica: str, details: dict[str, Any]) -> None:
        how = details.pop("how")
        if how == _CUT:
            bench.cuts.remove(details.pop("token"))
        elif how == _PAUSE:
            bench.cluster.signal(replica, signal.SIGCONT)
        else:
            bench.cluster.start(replica)

    @staticmethod
    def _disturb(bench: Bench, injection: Injection, meanwhile: str) -> None:
        replica = injection.targets[0]
        leader = bench.cluster.leader(injection.group)
        if meanwhile == _NARROW and leader not in (None, replica):
            bench.namespaces.set_rate(str(leader), _SENDING_RATE)
            injection.details["narrow"] = leader
        elif meanwhile in (_KILLED, _LEADER_CUT):
            seen = len(_lines(bench, replica, _RECEIVING))
            _wait(lambda: len(_lines(bench, replica, _RECEIVING)) > seen, 3.0)
            if meanwhile == _KILLED:
                bench.cluster.kill(replica)
                bench.cluster.start(replica)
            elif leader not in (None, replica):
                peers = [member for member in bench.members(injection.group) if member != leader]
                token = bench.cuts.add(both_ways([str(leader)], peers))
                time.sleep(2.0)
                bench.cuts.remove(token)
        injection.proof["meanwhile"] = meanwhile

    @staticmethod
    def _calm(bench: Bench, injection: Injection) -> None:
        narrow = injection.details.pop("narrow", None)
        if narrow is not None:
            bench.namespaces.set_rate(narrow, "")


def _is_beyond(bench: Bench, injection: Injection) -> bool:
    """Whether the leader's log begins behind all that the target has of it."""
    replica = injection.targets[0]
    leader = bench.cluster.leader(injection.group)
    if leader in (None, replica):
        return False
    theirs, ours = _segments(bench, str(leader)), _segments(bench, replica)
    if not theirs or not ours:
        return False
    injection.proof["leaderBegins"], injection.proof["targetEndsBefore"] = (
        theirs[0],
        ours[-1] + SEGMENT_BYTES,
    )
    return theirs[0] >= ours[-1] + SEGMENT_BYTES


def _segments(bench: Bench, replica: str) -> list[int]:
    """Returns the physical offsets at which a replica's segments begin."""
    directory = bench.cluster.volumes.directory(replica) / "log"
    with contextlib.suppress(OSError):
        return sorted(int(path.name) for path in directory.iterdir() if path.name.isdigit())
    return []


def _installs(bench: Bench, replica: str) -> list[int]:
    return _lines(bench, replica, _INSTALLED)


def _lines(bench: Bench, replica: str, pattern: re.Pattern[str]) -> list[int]:
    """Returns the applied indexes that a replica's log names in such lines."""
    with contextlib.suppress(OSError):
        text = bench.cluster.log_path(replica).read_text(encoding="utf-8", errors="replace")
        return [int(found) for found in pattern.findall(text)]
    return []


def _wait(condition: Callable[[], bool], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_S)
    return True
