"""Orders faults at random times against random targets, as a plan says."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from random import Random
from typing import TYPE_CHECKING, Any

from dledger.errors import DLedgerError
from jepsen_tests.sim.host import Host

if TYPE_CHECKING:
    from jepsen_tests.sim.world import World


class _TimeIsOverError(Exception):
    """The time of faults is over; a schedule ends where it is."""


def serves(host: Host) -> bool:
    """Whether a host's process can be asked for something."""
    return host.is_running and not host.is_paused and host.app.node is not None


class Chaos:
    """The one task that breaks things, and mends some of them again."""

    def __init__(self, world: World, random: Random) -> None:
        self._world = world
        self._random = random
        self._until = 0.0
        self._schedule: asyncio.Task[None] | None = None

    async def run(self, until: float) -> None:
        """Breaks things until then."""
        self._until = until
        random, plan = self._random, self._world.plan
        kinds = sorted(plan.weights)
        weights = [plan.weights[kind] for kind in kinds]
        while kinds:
            await asyncio.sleep(random.expovariate(1.0 / plan.gap_s))
            if self._world.loop.time() >= until:
                return
            self.apply(random.choices(kinds, weights)[0])

    def apply(self, kind: str, victim: str | None = None) -> None:
        """Orders one fault of a kind; picks who suffers unless told."""
        leading = kind.endswith("-leader")
        host = self._world.hosts[victim] if victim else self._pick(leading=leading)
        if host is None:
            return
        name = kind.removesuffix("-leader").replace("-", "_")
        getattr(self, f"_{name}")(host)

    def _pick(self, *, leading: bool) -> Host | None:
        world = self._world
        leader = world.leader()
        if leading:
            return leader
        return self._random.choice(list(world.hosts.values()))

    def _fault(self, kind: str, what: str) -> None:
        self._world.trace.fault(kind, what)

    # --- processes and power -----------------------------------------------------------------

    def _kill(self, host: Host) -> None:
        if host.is_running:
            self._fault("kill", host.name)
            self._world.kill(host)
            self._world.restart_later(host, self._random.choice((0.05, 0.3, 2.0)))

    def _power(self, host: Host) -> None:
        if host.is_on:
            self._fault("power", host.name)
            self._world.power_off(host)
            self._world.restart_later(host, self._random.choice((0.1, 0.5, 3.0)))

    def _power_all(self, _host: Host) -> None:
        self._fault("power-all", "every machine")
        for host in self._world.hosts.values():
            if host.is_on:
                self._world.power_off(host)
            self._world.restart_later(host, self._random.choice((0.1, 0.5, 3.0)))

    def _power_majority(self, host: Host) -> None:
        """Most machines, the leader among them, lose power right after an acknowledgement."""
        self._fault("power-majority", "after the next acknowledgement")
        world = self._world
        seconds = [self._random.choice((0.1, 0.5, 3.0)) for _ in world.hosts]
        others = list(world.hosts.values())
        self._random.shuffle(others)

        def off() -> None:
            leader = world.leader() or host
            victims = [leader, *(other for other in others if other is not leader)]
            for victim, delay_s in zip(victims[: len(victims) // 2 + 1], seconds, strict=False):
                world.trace.note("FAULT", f"power-majority: {victim.name}")
                if victim.is_on:
                    world.power_off(victim)
                world.restart_later(victim, delay_s)

        world.at_acknowledgement(off)

    def _pause(self, host: Host) -> None:
        process = host.process
        if process is not None and process.is_alive and not process.is_paused:
            seconds = self._random.choice((0.2, 0.7, 2.0, 4.0))
            self._fault("pause", f"{host.name} for {seconds} s")
            process.pause()
            self._world.loop.call_later(seconds, process.resume)

    def _crash_point(self, host: Host) -> None:
        if not host.is_running:
            return
        operations = self._random.randrange(1, 40)
        power = self._random.random() < 0.5
        self._fault("crash-point", f"{host.name} at its {operations}th disk operation, {power=}")
        self._world.crash_at(host, operations, power=power)

    # --- network -----------------------------------------------------------------------------

    def _names(self) -> list[str]:
        return list(self._world.hosts)

    def _everyone(self) -> list[str]:
        """All machines, those of clients and nameservers too."""
        return list(self._world.network.machines)

    def _cut_between(self, one: list[str], other: list[str]) -> None:
        for a in one:
            for b in other:
                if a != b:
                    self._world.network.cut(a, b)
                    self._world.network.cut(b, a)

    def _isolate(self, host: Host) -> None:
        others = self._everyone() if self._random.random() < 0.5 else self._names()
        self._fault("isolate", f"{host.name} from {len(others) - 1}")
        self._world.network.isolate(host.name, others)

    def _one_way(self, host: Host) -> None:
        other = self._random.choice([name for name in self._names() if name != host.name])
        pairs = [(host.name, other), (other, host.name)]
        if self._random.random() < 0.5:
            pairs = pairs[:1]
            if self._random.random() < 0.5:
                pairs = [(host.name, name) for name in self._names() if name != host.name]
        self._fault("one-way", " ".join(f"{a}>{b}" for a, b in pairs))
        for pair in pairs:
            self._world.network.cut(*pair)

    def _halves(self, _host: Host) -> None:
        names = self._everyone()
        self._random.shuffle(names)
        at = self._random.randrange(1, len(names))
        self._fault("halves", f"{names[:at]} | {names[at:]}")
        self._cut_between(names[:at], names[at:])

    def _bridge(self, host: Host) -> None:
        names = [name for name in self._names() if name != host.name]
        self._random.shuffle(names)
        half = len(names) // 2
        self._fault("bridge", f"{names[:half]} - {host.name} - {names[half:]}")
        self._cut_between(names[:half], names[half:])

    def _ring(self, _host: Host) -> None:
        names = self._names()
        self._random.shuffle(names)
        self._fault("ring", " ".join(names))
        count = len(names)
        for at, name in enumerate(names):
            near = {names[at - 1], names[(at + 1) % count], name}
            self._cut_between([name], [other for other in names if other not in near])

    def _heal(self, _host: Host) -> None:
        self._fault("heal", "links and disks")
        self._world.network.calm()
        for host in self._world.hosts.values():
            host.disk.heal()

    def _slow_link(self, host: Host) -> None:
        delay = self._random.choice((0.02, 0.08, 0.25))
        self._fault("slow-link", f"{host.name} {delay} s")
        for pair, link in self._world.network.links.items():
            if host.name in pair and pair[0] != pair[1] and self._random.random() < 0.7:
                link.delay_s, link.jitter_s = delay, delay * self._random.choice((0.0, 0.5, 2.0))

    def _narrow_link(self, host: Host) -> None:
        rate = self._random.choice((20_000.0, 200_000.0))
        self._fault("narrow-link", f"{host.name} {rate:.0f} bytes/s")
        for pair, link in self._world.network.links.items():
            if host.name in pair and pair[0] != pair[1] and self._random.random() < 0.7:
                link.rate = rate

    def _reset(self, host: Host) -> None:
        other = self._random.choice([name for name in self._everyone() if name != host.name])
        count = self._world.network.reset_connections(host.name, other)
        self._fault("reset", f"{host.name} - {other}: {count} connection ends")

    # --- the log -----------------------------------------------------------------------------

    def _compact(self, host: Host) -> None:
        hosts = [host] if self._random.random() < 0.3 else list(self._world.hosts.values())
        keep = self._random.choice((0, 0, 5, 40))
        dropped = [other.app.compact(keep) if serves(other) else 0 for other in hosts]
        self._fault("compact", f"{[other.name for other in hosts]}: {dropped} segments")

    def _transfer(self, host: Host) -> None:
        leader = self._world.leader()
        if leader is None or leader is host or leader.process is None:
            return
        self._fault("transfer", f"{leader.name} to {host.name}")
        node = leader.app.node

        async def transfer() -> None:
            with contextlib.suppress(DLedgerError):
                await node.transfer_leadership(host.name)

        leader.process.spawn(transfer())

    def _flood(self, _host: Host) -> None:
        for leader in self._world.serving():
            if not leader.is_paused:
                count = self._random.choice((20, 60))
                self._fault("flood", f"{leader.name} {count}")
                self._world.flood(leader, count)

    # --- schedules ---------------------------------------------------------------------------

    def _pile_up(self, _host: Host) -> None:
        """A leader is cut off with a long tail that nobody wants; the others go on, and compact."""
        self._begin(self._pile_up_steps())

    def _return(self, _host: Host) -> None:
        """A deposed leader leads again, while what it was told before still arrives."""
        self._begin(self._return_steps())

    def _doubt(self, _host: Host) -> None:
        """A replica does not know of its entries which are committed and which nobody wants."""
        self._begin(self._doubt_steps())

    def _begin(self, steps: Coroutine[Any, Any, None]) -> None:
        """Runs a schedule, one at a time."""
        if self._schedule is None or self._schedule.done():
            self._schedule = asyncio.ensure_future(self._follow(steps))
        else:
            steps.close()

    async def _follow(self, steps: Coroutine[Any, Any, None]) -> None:
        with contextlib.suppress(_TimeIsOverError):
            await steps

    async def _beats(self, low: float, high: float) -> None:
        """Waits for some heartbeats of the leader's."""
        beats = self._random.uniform(low, high)
        await asyncio.sleep(beats * self._world.plan.heartbeat_ms / 1000)
        if self._world.loop.time() >= self._until:
            raise _TimeIsOverError

    def _with_friend(self) -> tuple[Host, str, list[str]] | None:
        """Returns the leader, a follower, and the other replicas."""
        leader = self._world.leader()
        if leader is None:
            return None
        others = [name for name in self._names() if name != leader.name]
        friend = others.pop(self._random.randrange(len(others)))
        return leader, friend, others

    async def _pile_up_steps(self) -> None:
        random, world = self._random, self._world
        found = self._with_friend()
        if found is None:
            return
        leader, friend, others = found
        minority = [leader.name, friend] if random.random() < 0.4 and len(others) > 1 else []
        minority = minority or [leader.name]
        count = random.choice((20, 60, 160))
        self._fault("pile-up", f"{count} on {minority}")
        world.flood(leader, random.choice((0, 10)))
        await self._beats(0.0, 0.1)
        self._cut_between(minority, [name for name in self._names() if name not in minority])
        world.flood(leader, count)
        await self._beats(9.0, 20.0)
        new = world.leader()
        if new is not None and new is not leader:
            world.flood(new, random.choice((0, 5, 60, 60)))
            await self._beats(0.5, 4.0)
        if random.random() < 0.7:
            for host in world.hosts.values():
                if host.name not in minority and serves(host):
                    host.app.compact(0)
        self._fault("heal", "after a pile-up")
        world.network.heal()

    async def _return_steps(self) -> None:
        random, world = self._random, self._world
        found = self._with_friend()
        if found is None:
            return
        leader, friend, others = found
        self._fault("return", f"{leader.name} with {friend}")
        link = world.network.links[friend, leader.name]
        link.delay_s = random.uniform(14.0, 26.0) * world.plan.heartbeat_ms / 1000
        self._cut_between([leader.name, friend], others)
        world.flood(leader, random.choice((10, 60)))
        await self._beats(8.0, 10.0)
        # The others have a leader; its entries replace the tail of the first one.
        world.network.heal()
        await self._beats(0.5, 2.0)
        # Only the first one can win now.
        second = world.leader()
        if second is None or second is leader:
            return
        world.network.isolate(second.name, self._names())
        around = [name for name in self._names() if name not in (leader.name, second.name)]
        for name in around:
            self._cut_between([name], around)
        world.network.cut(leader.name, friend)
        await self._beats(10.0, 16.0)
        world.flood(leader, random.choice((1, 10)))
        await self._beats(1.0, 8.0)
        self._fault("heal", "after a return")
        world.network.calm()

    async def _doubt_steps(self) -> None:
        random, world = self._random, self._world
        leader = world.leader()
        if leader is None:
            return
        tail = random.choice((20, 40))
        self._fault("doubt", f"{leader.name} with a tail of {tail}")
        # Everybody has these, but nobody's disk does: they are not committed yet.
        beat_s = world.plan.heartbeat_ms / 1000
        for host in world.hosts.values():
            host.disk.extra_sync_s = 4 * beat_s
        world.flood(leader, random.choice((15, 30)))
        await self._beats(1.0, 2.0)
        # Nobody else gets these, nor does this one hear that the others were committed after all.
        rest = [name for name in self._names() if name != leader.name]
        self._cut_between([leader.name], rest)
        world.flood(leader, tail)
        for host in world.hosts.values():
            host.disk.extra_sync_s = 0.0
        await self._beats(10.0, 16.0)
        new = world.leader()
        if new is not None and new is not leader:
            world.flood(new, 2 * tail)
            await self._beats(1.0, 3.0)
            if random.random() < 0.5:  # then a snapshot has to tell
                for name in rest:
                    if serves(world.hosts[name]):
                        world.hosts[name].app.compact(0)
        # What waits in the connections would tell it in order, the tail's end first.
        for name in rest:
            world.network.reset_connections(leader.name, name)
        self._fault("heal", "after a doubt")
        world.network.heal()
        await self._beats(4.0, 8.0)

    # --- disks and clocks --------------------------------------------------------------------

    def _slow_disk(self, host: Host) -> None:
        host.disk.extra_sync_s = self._random.choice((0.05, 0.2, 0.8))
        self._fault("slow-disk", f"{host.name} {host.disk.extra_sync_s} s")

    def _fail_sync(self, host: Host) -> None:
        self._fault("fail-sync", host.name)
        host.disk.fail_syncs = self._random.choice((1, 1, 3))

    def _disk_full(self, host: Host) -> None:
        if host.is_running:
            self._fault("disk-full", host.name)
            host.disk.fill()

    def _clock_jump(self, host: Host) -> None:
        jump_ms = self._random.choice((-300_000, -5_000, -50, 50, 5_000, 300_000))
        self._fault("clock-jump", f"{host.name} {jump_ms} ms")
        host.clock.offset_ms += jump_ms

    def _bit_flip(self, host: Host) -> None:
        """Damages the log of a machine, of a minority at most; its process dies first."""
        world = self._world
        damaged = [other for other in world.hosts.values() if other.damaged]
        if not host.damaged and 2 * (len(damaged) + 1) >= len(world.hosts):
            return
        if world.outside:
            return  # it would be the second that is not there
        if host.is_running:
            world.kill(host)
            world.restart_later(host, 0.3)
        where = host.flip_bit(self._random)
        if where:
            self._fault("bit-flip", f"{host.name} {where}")
