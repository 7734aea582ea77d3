"""Hypothesis chooses the schedule, and shrinks it: rules are operations and faults.

One seed, drawn first, decides the noise of the network; everything else is a rule, so that a
failing example is a short list of steps.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from dledger.errors import DLedgerError
from jepsen_tests.history import make_value
from jepsen_tests.sim.faults import serves
from jepsen_tests.sim.loop import VirtualLoop
from jepsen_tests.sim.plan import Plan
from jepsen_tests.sim.raft_layer import RaftClients, RaftServer
from jepsen_tests.sim.verdict import judge
from jepsen_tests.sim.world import World

REPLICAS = 5
HOSTS = st.sampled_from([f"r{number}" for number in range(REPLICAS)])


class GroupMachine(RuleBasedStateMachine):
    """Five replicas under a schedule."""

    def __init__(self) -> None:
        super().__init__()
        logging.disable(logging.CRITICAL)
        self.loop = VirtualLoop()
        self.pending: list[asyncio.Task[Any]] = []
        self.sequence = 0

    @initialize(seed=st.integers(0, 1 << 16))
    def start(self, seed: int) -> None:
        asyncio.set_event_loop(self.loop)
        plan = Plan(seed=seed, replicas=REPLICAS, delay_s=0.002, jitter_s=0.004, body_bytes=4000)
        self.world = World(self.loop, plan, RaftServer)
        self.clients = RaftClients(self.world)
        self.observer = self.loop.create_task(self.world.observe())
        for host in self.world.hosts.values():
            self.world.start(host)
        self.run(self.world.wait("a leader", self.world.leader, 6.0))

    def run(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    @rule(ms=st.sampled_from([5, 60, 400, 1500]))
    def tick(self, ms: int) -> None:
        self.run(asyncio.sleep(ms / 1000))

    @rule(count=st.integers(1, 5), stale=st.booleans())
    def send(self, count: int, stale: bool) -> None:
        serving = self.world.serving()
        if not serving:
            return
        host = serving[0] if stale else serving[-1]
        for _ in range(count):
            self.sequence += 1
            process = self.clients.process()
            work = self.clients.append(host, process, make_value(process, self.sequence), 20)
            self.pending.append(self.loop.create_task(work))

    @rule()
    def read(self) -> None:
        for host in self.world.serving():
            work = self.clients.read(host, self.clients.process())
            self.pending.append(self.loop.create_task(work))

    @rule(hosts=st.sets(HOSTS, min_size=1, max_size=4))
    def cut(self, hosts: set[str]) -> None:
        for name in sorted(hosts):
            others = [other for other in self.world.hosts if other not in hosts]
            self.world.network.isolate(name, others)

    @rule(sender=HOSTS, receiver=HOSTS)
    def cut_one_way(self, sender: str, receiver: str) -> None:
        if sender != receiver:
            self.world.network.cut(sender, receiver)

    @rule()
    def heal(self) -> None:
        self.world.network.heal()

    @rule(name=HOSTS)
    def kill(self, name: str) -> None:
        self.world.kill(self.world.hosts[name])

    @rule(name=HOSTS)
    def power_loss(self, name: str) -> None:
        host = self.world.hosts[name]
        if host.is_on:
            self.world.power_off(host)

    @rule(name=HOSTS)
    def stop(self, name: str) -> None:
        """Ends a replica in order, as `systemctl stop` does."""
        host = self.world.hosts[name]
        process = host.process
        if not serves(host) or process is None:
            return
        stopping = process.spawn(host.app.stop())
        self.run(asyncio.wait({stopping}, timeout=3.0))
        assert stopping.done(), "an orderly stop takes long"
        self.world.kill(host)

    @rule(name=HOSTS)
    def restart(self, name: str) -> None:
        self.world.start(self.world.hosts[name])

    @rule(keep=st.sampled_from([0, 5]), hosts=st.sets(HOSTS, min_size=1))
    def compact(self, keep: int, hosts: set[str]) -> None:
        for name in sorted(hosts):
            if serves(self.world.hosts[name]):
                self.world.hosts[name].app.compact(keep)

    @rule(name=HOSTS)
    def transfer(self, name: str) -> None:
        leader = self.world.leader()
        if leader is None or leader.process is None or leader.name == name:
            return
        node = leader.app.node

        async def transfer() -> None:
            with contextlib.suppress(DLedgerError):
                await node.transfer_leadership(name)

        leader.process.spawn(transfer())

    @rule(count=st.sampled_from([10, 60]))
    def flood(self, count: int) -> None:
        """Many large appends: enough for a segment, so that there is something to drop."""
        for host in self.world.serving():
            self.clients.flood(host, count)

    @rule(name=HOSTS, stop=st.booleans())
    def pause(self, name: str, stop: bool) -> None:
        process = self.world.hosts[name].process
        if process is not None and process.is_alive:
            if stop:
                process.pause()
            else:
                process.resume()

    @rule(name=HOSTS, operations=st.integers(1, 12), power=st.booleans())
    def crash_at(self, name: str, operations: int, power: bool) -> None:
        if self.world.hosts[name].is_running:
            self.world.crash_at(self.world.hosts[name], operations, power=power)

    @invariant()
    def nothing_is_violated(self) -> None:
        if hasattr(self, "world"):
            self.world.observe_now()
            assert not self.world.oracle.violations, self.world.oracle.violations

    def teardown(self) -> None:
        try:
            if hasattr(self, "world"):
                self.finish()
        finally:
            self.loop.close_coroutines()
            asyncio.set_event_loop(None)
            self.loop.close()
            logging.disable(logging.NOTSET)
            gc.collect()

    def finish(self) -> None:
        world = self.world
        world.heal()
        self.run(world.wait("a leader", world.leader, world.leader_bound_s()))
        healed = self.loop.time()
        self.run(self.clients.prove_progress(healed + 4.0))
        assert self.clients.progress_at >= healed, "no progress after healing"
        pending = self.pending + self.clients.flooding
        if pending:
            self.run(asyncio.wait(pending))
        self.run(world.wait("equal replicas", world.converged, 12.0))
        self.clients.final_reads()
        self.observer.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            self.run(self.observer)
        self.nothing_is_violated()
        found = judge(world.history, nodes=list(world.hosts), start_s=world.start_s, finished=True)
        assert not found, found


TestGroup = GroupMachine.TestCase
TestGroup.settings = settings(
    max_examples=30,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
