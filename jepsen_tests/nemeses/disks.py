"""F9, F10, F11: disks that fill up, fail, lie, lose power or rot."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from pathlib import Path
from typing import ClassVar

from jepsen_tests.hosts.capabilities import Capabilities
from jepsen_tests.hosts.shell import HarnessError, tool_environment
from jepsen_tests.nemeses.base import (
    ALL,
    FOLLOWER,
    LEADER,
    MAJORITY,
    MINORITY,
    Bench,
    Injection,
    Nemesis,
)
from jepsen_tests.nemeses.processes import stop_all

_SYNCS = "fsync,fdatasync,msync"
_START_S = 20.0


class Tracer:
    """strace on a running process: its system calls fail or wait. Ends when told to."""

    def __init__(self, pid: int, calls: str, inject: str, log: Path) -> None:
        """Attaches.

        Raises:
            HarnessError: It could not.
        """
        self.log = log
        options = ["-qq", "-f", "-e", f"trace={calls}", "-e", f"inject={calls}:{inject}"]
        self._child = subprocess.Popen(
            ["strace", *options, "-o", str(log), "-p", str(pid)],  # noqa: S607
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=tool_environment(),
            start_new_session=True,
        )
        deadline = time.monotonic() + 5.0
        while not _is_traced(pid):
            if self._child.poll() is not None or time.monotonic() > deadline:
                self.detach()
                raise HarnessError(f"strace could not attach to pid {pid}")
            time.sleep(0.01)

    def detach(self) -> None:
        """Ends it; the process goes on."""
        if self._child.poll() is None:
            self._child.send_signal(signal.SIGINT)
            try:
                self._child.wait(5.0)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait(5.0)

    def injected(self) -> int:
        """Returns how many calls were tampered with."""
        with contextlib.suppress(OSError):
            return self.log.read_text(errors="replace").count("(INJECTED")
        return 0

    def delayed(self) -> int:
        """Returns how many calls had to wait."""
        with contextlib.suppress(OSError):
            return self.log.read_text(errors="replace").count("(DELAYED")
        return 0


def _is_traced(pid: int) -> bool:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
            if line.startswith("TracerPid:"):
                return line.split()[1] != "0"
    return False


class DiskNemesis(Nemesis):
    """F9: a full disk, a sync that fails (the replica must stop), slow syncs."""

    name = "F9"
    title = "disk full, EIO, slow sync"
    targets = (LEADER, FOLLOWER)
    needs_images = True
    _shapes: ClassVar[tuple[str, ...]] = ("full", "EIO on sync", "slow sync")

    def __init__(self) -> None:
        self._turn = 0

    def unavailable(self, capabilities: Capabilities) -> str:
        """Needs disks of our own and strace."""
        return capabilities.loop or capabilities.strace

    def begin(self, bench: Bench) -> Injection:
        """Breaks the disk of one replica, in each way in turn."""
        group, target = bench.group(), self.choose_target(bench)
        replica = bench.pick(group, target)[0]
        shape = self._shapes[self._turn % len(self._shapes)]
        self._turn += 1
        injection = Injection(f"{shape} of {target}", [replica], group, {"shape": shape})
        if shape == "full":
            injection.proof["freeBytes"] = bench.images.fill(replica)
            return injection
        pid = bench.cluster.pid(replica)
        if pid is None:
            raise HarnessError(f"{replica} does not run")
        delay = bench.chance.choice((50, 150, 500))
        inject = "error=EIO" if shape.startswith("EIO") else f"delay_enter={delay * 1000}"
        log = bench.cluster.directory / replica / "strace.log"
        injection.details["tracer"] = Tracer(pid, _SYNCS, inject, log)
        if shape == "slow sync":
            injection.proof["delayMs"] = delay
        return injection

    def end(self, bench: Bench, injection: Injection) -> None:
        """Mends the disk, and starts the replica again if it stopped, as it should after EIO."""
        shape, replica = injection.details.pop("shape"), injection.targets[0]
        if shape == "full":
            injection.proof["refusals"] = _log_count(bench, replica, ("disk", "space"))
            bench.images.drain(replica)
            injection.bit = injection.proof["freeBytes"] < 4096
            if bench.cluster.pid(replica) is None:
                injection.proof["stopped"] = bench.cluster.log_tail(replica)
        elif shape == "slow sync":
            tracer = injection.details.pop("tracer")
            tracer.detach()
            injection.proof["syncsDelayed"] = tracer.delayed()
            injection.bit = tracer.delayed() > 0
        else:
            code = bench.cluster.wait_gone(replica, 5.0)
            tracer = injection.details.pop("tracer")
            tracer.detach()
            injection.proof["syncsFailed"] = tracer.injected()
            injection.proof["exitCode"] = code
            if code is None:
                injection.proof["still runs after a failed sync"] = True
            injection.bit = tracer.injected() > 0 and code is not None
        bench.cluster.start(replica)


def _log_count(bench: Bench, replica: str, words: tuple[str, ...]) -> int:
    with contextlib.suppress(OSError):
        text = bench.cluster.log_path(replica).read_text(errors="replace").lower()
        return sum(any(word in line for word in words) for line in text.splitlines())
    return 0


class PowerNemesis(Nemesis):
    """F10: the machine of the target loses power, and with it all that was not synced.

    All machines of a target lose it at the same instant. Proof: of two files written just before,
    the synced one is there afterwards, the unsynced one is not.
    """

    name = "F10"
    title = "power loss"
    targets = (LEADER, MINORITY, MAJORITY, ALL, ALL)
    needs_images = True
    hold_s = (0.3, 2.0)

    def unavailable(self, capabilities: Capabilities) -> str:
        """Needs disks of our own."""
        return capabilities.loop

    def begin(self, bench: Bench) -> Injection:
        """Takes the power."""
        group, target = bench.group(), self.choose_target(bench)
        chosen = bench.pick(group, target)
        return self.begin_on(bench, chosen, Injection(f"power loss of {target}", chosen, group))

    def begin_on(self, bench: Bench, chosen: list[str], injection: Injection) -> Injection:
        """Takes the power of these replicas."""
        images, cluster = bench.images, bench.cluster
        injection.targets = list(chosen)
        # The synced canary first: its sync must not take the unsynced one of the same disk along.
        canaries = {replica: images.write_canaries(replica) for replica in chosen}
        stop_all(cluster, chosen)
        for replica in chosen:
            images.snapshot(replica)
        for replica in chosen:
            cluster.kill(replica)
        for replica in chosen:
            images.lose_power(replica)
        kept = {r: synced.exists() for r, (synced, _) in canaries.items()}
        lost = {
            r: not unsynced.exists() or not unsynced.read_bytes().strip(b"\0")
            for r, (_, unsynced) in canaries.items()
        }
        injection.proof = {"syncedKept": kept, "unsyncedLost": lost}
        injection.bit = all(kept.values()) and all(lost.values())
        for pair in canaries.values():
            for path in pair:
                path.unlink(missing_ok=True)
        return injection

    def end(self, bench: Bench, injection: Injection) -> None:
        """Gives the power back."""
        for replica in injection.targets:
            bench.cluster.start(replica)


class RotNemesis(Nemesis):
    """F11: a bit flips in the log of a follower that is down.

    The replica must notice and refuse to start, naming the place; then the bit is put right again
    (as a rebuild from its peers would) and it must come back.
    """

    name = "F11"
    title = "bit flip"
    targets = (FOLLOWER,)
    hold_s = (1.0, 2.0)

    def begin(self, bench: Bench) -> Injection:
        """Kills the follower, flips a bit in the middle of its newest segment, starts it."""
        group = bench.group()
        replica = bench.pick(group, FOLLOWER)[0]
        bench.cluster.kill(replica)
        injection = Injection("bit flip on a follower", [replica], group)
        directory = bench.cluster.volumes.directory(replica) / "log"
        place = _flip_bit(bench, directory)
        if place is None:
            bench.cluster.start(replica)
            raise HarnessError(f"{directory} holds nothing to flip a bit in")
        path, position, mask = place
        injection.details["flip"] = (str(path), position, mask)
        injection.proof["flipped"] = f"{path.name} at {position}"
        bench.cluster.start(replica)
        return injection

    def end(self, bench: Bench, injection: Injection) -> None:
        """Puts the bit right."""
        replica = injection.targets[0]
        path, position, mask = injection.details.pop("flip")
        code = _wait_decided(bench, replica)
        injection.proof["exitCode"] = code
        injection.proof["said"] = bench.cluster.log_tail(replica).splitlines()[-1:]
        if code is None:
            answers = bench.cluster.wall_offset_ms(replica) is not None
            injection.proof["started with a flipped bit"] = answers
            bench.cluster.kill(replica)
        _xor(Path(path), position, mask)
        bench.cluster.start(replica)
        injection.bit = code == 1


def _wait_decided(bench: Bench, replica: str) -> int | None:
    """Waits until a new process has ended or serves; returns its exit code, None if it serves.

    On a busy machine the start of the program alone takes seconds.
    """
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        code = bench.cluster.wait_gone(replica, 0.5)
        if code is not None:
            return code
        if bench.cluster.wall_offset_ms(replica) is not None:
            break
    return None


def _flip_bit(bench: Bench, directory: Path) -> tuple[Path, int, int] | None:
    """Flips a bit of written data well before the end, so that valid records follow it."""
    segments = [path for path in sorted(directory.iterdir()) if path.name.isdigit()]
    if not segments:
        return None
    path = segments[-1]
    with path.open("rb") as file:
        data = file.read()
    used = len(data.rstrip(b"\0"))
    if used < 4096:
        return None
    position = bench.chance.randrange(used // 4, used // 2)
    mask = 1 << bench.chance.randrange(8)
    _xor(path, position, mask)
    return path, position, mask


def _xor(path: Path, position: int, mask: int) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes((byte ^ mask,)))
