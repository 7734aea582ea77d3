"""Orders faults at random times against random targets, as a plan says."""

from __future__ import annotations

import asyncio
from random import Random
from typing import TYPE_CHECKING

from jepsen_tests.sim.host import Host

if TYPE_CHECKING:
    from jepsen_tests.sim.world import World


class Chaos:
    """The one task that breaks things, and mends some of them again."""

    def __init__(self, world: World, random: Random) -> None:
        self._world = world
        self._random = random
        self._clean = True  # no link is cut

    async def run(self, until: float) -> None:
        """Breaks things until then."""
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
        if host.is_running:
            world.kill(host)
            world.restart_later(host, 0.3)
        where = host.flip_bit(self._random)
        if where:
            self._fault("bit-flip", f"{host.name} {where}")
