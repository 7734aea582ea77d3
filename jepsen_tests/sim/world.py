"""Machines, network, oracle and history of one run; the parts that both layers share."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any, Protocol

from dledger.errors import (
    CorruptRecordError,
    DiskFullError,
    InvariantError,
    ReplicaRemovedError,
    StoreError,
)
from dledger.raft.config import RaftConfig
from dledger.raft.engine import Engine
from jepsen_tests.history import Fault, Note, Phase, Record
from jepsen_tests.sim.host import Host
from jepsen_tests.sim.loop import VirtualLoop
from jepsen_tests.sim.network import Network
from jepsen_tests.sim.oracle import Oracle
from jepsen_tests.sim.plan import Plan
from jepsen_tests.sim.trace import Trace

LEADER_BOUND_S = 3.0
PROGRESS_BOUND_S = 4.0
CONVERGE_BOUND_S = 12.0
OBSERVE_S = 0.05


class Server(Protocol):
    """What runs on a host: a Raft replica, or a whole broker around one."""

    node: Any  # RaftNode, None until it is open
    log: Any

    async def run(self) -> None:
        """Opens everything and serves; returns when the process must end."""
        ...

    def compact(self, keep: int) -> int:
        """Drops the front of the log but for `keep` entries; returns how many segments went."""
        ...

    def close_files(self) -> None:
        """Gives back what a dead process would: handles outside of the simulation."""
        ...


class LivenessError(Exception):
    """After all faults had ended, something did not happen in time."""


class World:
    """One run's cast."""

    def __init__(
        self,
        loop: VirtualLoop,
        plan: Plan,
        make_server: Callable[[World, Host], Server],
        *,
        engine_class: type[Engine] = Engine,
        ignores_sync: bool = False,
        write_trace: Callable[[str], None] | None = None,
    ) -> None:
        self.loop = loop
        self.plan = plan
        self.engine_class = engine_class
        self.random = Random(f"world/{plan.seed}")
        self.trace = Trace(loop, write_trace)
        self.network = Network(
            loop,
            Random(f"network/{plan.seed}"),
            delay_s=plan.delay_s,
            jitter_s=plan.jitter_s,
        )
        self.start_s = loop.time()
        names = [f"r{number}" for number in range(plan.replicas)]
        self.oracle = Oracle(loop, self.start_s, names)
        self.history: list[Record] = []
        self.outside: set[str] = set()  # who is removed, or not a voter again yet
        self.hosts: dict[str, Host] = {}
        self._make_server = make_server
        self._fault_id = 0
        self.flood: Callable[[Host, int], None] = lambda _host, _count: None  # set by clients
        self._after_acknowledgement: list[Callable[[], None]] = []
        for number, name in enumerate(names):
            self.hosts[name] = Host(
                self.network,
                name,
                f"10.0.0.{number + 1}",
                plan.seed,
                sync_s=plan.sync_s,
                ignores_sync=ignores_sync,
            )

    def raft_config(self) -> RaftConfig:
        """Returns the group's settings: the default ones, stretched with the heartbeat."""
        beat = self.plan.heartbeat_ms
        return RaftConfig(
            heartbeat_ms=beat,
            election_timeout_min_ms=4 * beat,
            election_timeout_max_ms=8 * beat,
            check_quorum_ms=12 * beat,
            append_bytes_max=self.plan.append_bytes_max,
        )

    def leader_bound_s(self) -> float:
        """Returns how long a healed group may be without a leader that serves."""
        slowest = max(host.disk.sync_s for host in self.hosts.values())
        return LEADER_BOUND_S + 0.04 * self.plan.heartbeat_ms + 10 * slowest

    def now_ns(self) -> int:
        """Returns the virtual time in ns, for the history."""
        return int(self.loop.time() * 1e9)

    # --- processes ---------------------------------------------------------------------------

    def start(self, host: Host) -> None:
        """Starts a host's server."""
        if host.is_running or host.refused:
            return
        server = self._make_server(self, host)
        self.trace.note(host.name, "start")
        host.start(server, lambda: self._serve(host, server))

    async def _serve(self, host: Host, server: Server) -> None:
        """A process's main: like a shell that starts a server again when it has ended."""
        incarnation = host.incarnation
        try:
            await server.run()
            why: BaseException | None = None
        except Exception as error:
            why = error
        if host.incarnation == incarnation:
            # From outside of the process, because it ends.
            self.network.after(0.0, self._ended, host, incarnation, why)

    def _ended(self, host: Host, incarnation: int, error: BaseException | None) -> None:
        if host.incarnation != incarnation or not host.is_running:
            return
        self.trace.note(host.name, f"ended: {type(error).__name__}: {error}")
        if isinstance(error, ReplicaRemovedError) and self.plan.changes_gap_s:
            host.refused = str(error)
            self.outside.add(host.name)
        elif isinstance(error, CorruptRecordError) and host.damaged:
            host.refused = str(error)
        elif isinstance(error, DiskFullError):
            pass
        elif isinstance(error, StoreError) and host.disk.failed:
            host.disk.failed = 0
        else:
            self.oracle.violated("process-ended", f"{host.name}: {type(error).__name__}: {error}")
        self.kill(host)
        self.restart_later(host, 0.5)

    def kill(self, host: Host) -> None:
        """Kills a host's process."""
        if host.is_running:
            host.app.close_files()
        host.kill()

    def power_off(self, host: Host) -> None:
        """Switches a machine off."""
        if host.is_running:
            host.app.close_files()
        host.power_off()

    def restart_later(self, host: Host, delay_s: float) -> None:
        """Starts the host's process again after a while."""
        self.network.after(delay_s, self.start, host)

    def crash_at(self, host: Host, operations: int, *, power: bool) -> None:
        """Lets the process, or the machine, die in the middle of its disk operations."""

        def die() -> None:
            self.trace.note(host.name, "crash point reached")
            process = host.process
            files = host.disk.files
            if process is None or not process.is_alive:
                return
            # The rest of the running callback still executes; nothing it does leaves the machine,
            # because its disk is off and its connections are gone.
            if power:
                self.power_off(host)
            else:
                self.kill(host)
            files._is_off = True
            self.restart_later(host, 0.3)

        host.disk.on_crash = die
        host.disk.crash_in = operations

    def leader(self) -> Host | None:
        """Returns the host that serves as leader in the highest term."""
        best: Host | None = None
        term = -1
        for host in self.hosts.values():
            node = host.app.node if host.is_running and not host.is_paused else None
            if node is not None and node.is_serving and node.term > term:
                best, term = host, node.term
        return best

    def serving(self) -> list[Host]:
        """Returns every host that believes it serves as leader."""
        return [
            host
            for host in self.hosts.values()
            if host.is_running and host.app.node is not None and host.app.node.is_serving
        ]

    def at_acknowledgement(self, callback: Callable[[], None]) -> None:
        """Calls back once, at the moment in which the next client is told that it is done."""
        self._after_acknowledgement.append(callback)

    def on_acknowledged(self) -> None:
        """A client was told that it is done."""
        waiting, self._after_acknowledgement = self._after_acknowledgement, []
        for callback in waiting:
            callback()

    # --- phases ------------------------------------------------------------------------------

    async def observe(self) -> None:
        """Looks at all nodes again and again; runs until cancelled."""
        while True:
            self.observe_now()
            await asyncio.sleep(OBSERVE_S)

    def observe_now(self) -> None:
        """Looks at all nodes once."""
        for host in self.hosts.values():
            if host.is_running and host.process is not None and host.app.node is not None:
                self.oracle.observe(host.process.name, host.name, host.app.node, host.app.log)

    def heal(self) -> None:
        """Ends all faults and starts what is down."""
        self.trace.note("WORLD", "heal")
        self._after_acknowledgement.clear()
        self.network.calm()
        for host in self.hosts.values():
            host.disk.heal()
            if host.is_paused and host.process is not None:
                host.process.resume()
            if not host.is_running:
                self.start(host)

    async def wait(self, what: str, condition: Callable[[], object], bound_s: float) -> float:
        """Waits for a condition; returns how long it took.

        Raises:
            LivenessError: It did not become true within the bound.
        """
        begin = self.loop.time()
        while not condition():
            if self.loop.time() - begin > bound_s:
                raise LivenessError(f"not within {bound_s} s: {what}")
            await asyncio.sleep(0.01)
        return self.loop.time() - begin

    def healthy(self) -> list[Host]:
        """Returns the hosts that can run."""
        return [host for host in self.hosts.values() if not host.refused]

    def converged(self) -> bool:
        """Whether all healthy replicas have applied the same, all of it."""
        applied = set()
        for host in self.healthy():
            node = host.app.node if host.is_running else None
            if node is None:
                return False
            applied.add((node.applied_index, host.app.log.last_index))
        return len(applied) == 1 and len(set(next(iter(applied)))) == 1

    def phase(self, name: str) -> None:
        """Notes a phase in trace and history."""
        self.trace.note("WORLD", f"phase {name}")
        self.history.append(Phase(name=name, t=self.now_ns()))

    def add_faults(self) -> None:
        """Writes the faults into the history, with the proof that they bit."""
        held = self.network.held_back
        for at_s, text in self.trace.faults:
            self._fault_id += 1
            at = int((at_s + self.start_s) * 1e9)
            self.history.append(
                Fault(id=self._fault_id, name=text, inv=at, ret=at, proof={"held_back": held})
            )

    def note(self, name: str, node: str, **details: Any) -> None:
        """Adds a note to trace and history."""
        self.trace.note(node, f"{name} {details}" if details else name)
        self.history.append(Note(name=name, t=self.now_ns(), node=node, details=details))


async def bounded(work: Coroutine[Any, Any, Any], timeout_s: float) -> Any:
    """Awaits something that may never end because its process is dead."""
    task = asyncio.ensure_future(work)
    done, _ = await asyncio.wait({task}, timeout=timeout_s)
    if not done:
        task.cancel()
        raise TimeoutError
    return task.result()


def definite(error: BaseException) -> bool:
    """Whether an error says that nothing happened."""
    return bool(getattr(error, "definite", False)) and not isinstance(error, InvariantError)


__all__ = ["LivenessError", "Server", "World", "bounded", "contextlib", "definite"]
