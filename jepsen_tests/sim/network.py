"""A simulated network: machines, links, and connections that behave like TCP's.

A connection is two ordered byte streams. A cut link loses nothing of them: what is sent waits and
arrives, in order, some time after the link has healed, unless a side gives up first (its TCP user
timeout) or the connection is reset. A killed process closes its connections; a machine without
power is silent, and answers with a reset when it is back.
"""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
from collections.abc import Callable
from random import Random
from typing import Any

from jepsen_tests.sim.connection import Endpoint, Pipe
from jepsen_tests.sim.loop import Process, VirtualLoop

SYN_RETRY_S = 0.25


class LinkState:
    """What happens to packets from one machine to another."""

    __slots__ = ("cut_at", "delay_s", "is_cut", "jitter_s", "lost", "rate")

    def __init__(self, delay_s: float, jitter_s: float) -> None:
        self.delay_s = delay_s
        self.jitter_s = jitter_s
        self.rate = 0.0  # bytes per second; 0: unlimited
        self.is_cut = False
        self.cut_at = 0.0
        self.lost = 0


class Machine:
    """A host as the network sees it."""

    __slots__ = ("address", "is_on", "name", "ports")

    def __init__(self, name: str, address: str) -> None:
        self.name = name
        self.address = address
        self.is_on = True
        self.ports: dict[int, Listener] = {}


class Network:
    """All machines and links, and the only source of what happens between them."""

    def __init__(
        self, loop: VirtualLoop, random: Random, *, delay_s: float, jitter_s: float
    ) -> None:
        self.loop = loop
        self.random = random
        self.delay_s = delay_s
        self.jitter_s = jitter_s
        self.machines: dict[str, Machine] = {}
        self.by_address: dict[str, Machine] = {}
        self.links: dict[tuple[str, str], LinkState] = {}
        self.pipes: dict[tuple[str, str], dict[int, Pipe]] = {}
        self.digest = hashlib.blake2b(digest_size=8)
        self.delivered = 0
        self.delivered_bytes = 0
        self.traffic: dict[tuple[str, str], list[int]] = {}  # deliveries and bytes by link
        self.held_back = 0  # deliveries that a fault kept from happening: proof that faults bite
        self.split_chance = 0.02
        self._next_id = 1
        self._next_port = 40_000
        self._free = contextvars.Context()  # of what belongs to no process
        loop.network = self

    # --- machines and links ------------------------------------------------------------------

    def add_machine(self, name: str, address: str) -> None:
        """Adds a machine, linked with all others."""
        machine = Machine(name, address)
        for other in self.machines:
            for pair in ((name, other), (other, name)):
                self.links[pair] = LinkState(self.delay_s, self.jitter_s)
        self.links[name, name] = LinkState(0.00002, 0.0)
        self.machines[name] = machine
        self.by_address[address] = machine

    def cut(self, sender: str, receiver: str) -> None:
        """Nothing arrives in this direction any more."""
        link = self.links[sender, receiver]
        if not link.is_cut:
            link.is_cut = True
            link.cut_at = self.loop.time()

    def isolate(self, name: str, others: list[str]) -> None:
        """Cuts a machine off from others, in both directions."""
        for other in others:
            if other != name:
                self.cut(name, other)
                self.cut(other, name)

    def heal(self) -> None:
        """Restores all links. Streams go on after TCP has noticed."""
        for pair, link in self.links.items():
            if link.is_cut:
                link.is_cut = False
                silence = self.loop.time() - link.cut_at
                for pipe in list(self.pipes.get(pair, {}).values()):
                    pipe.healed(self.random.uniform(0.0, min(1.5, 0.02 + 0.7 * silence)))

    def calm(self) -> None:
        """Ends every degradation."""
        self.heal()
        for pair, link in self.links.items():
            if link.rate:
                link.rate = 0.0
                for pipe in list(self.pipes.get(pair, {}).values()):
                    pipe.hurry()
            if pair[0] != pair[1]:
                link.delay_s, link.jitter_s = self.delay_s, self.jitter_s

    def reset_connections(self, a: str, b: str) -> int:
        """Breaks every connection between two machines; both ends learn of it."""
        endpoints = [
            end
            for pair in ((a, b), (b, a))
            for pipe in self.pipes.get(pair, {}).values()
            for end in (pipe.source,)
        ]
        for endpoint in endpoints:
            endpoint.lose_soon(ConnectionResetError("connection reset (simulated)"))
        return len(endpoints)

    # --- processes and power -----------------------------------------------------------------

    def process_died(self, process: Process) -> None:
        """The kernel closes what a dead process had open."""
        self._unlisten(process)
        for endpoint in list(process.endpoints.values()):
            endpoint.vanish(told=True)
        process.endpoints.clear()

    def power_off(self, name: str, process: Process | None) -> None:
        """A machine falls silent."""
        machine = self.machines[name]
        machine.is_on = False
        if process is not None:
            self._unlisten(process)
            for endpoint in list(process.endpoints.values()):
                endpoint.vanish(told=False)
            process.endpoints.clear()

    def power_on(self, name: str) -> None:
        """The machine answers again; what it is asked about old connections, it resets."""
        self.machines[name].is_on = True
        for pair, pipes in self.pipes.items():
            if pair[1] == name:
                for pipe in list(pipes.values()):
                    pipe.healed(self.random.uniform(0.0, 0.4))

    def _unlisten(self, process: Process) -> None:
        for listener in process.listeners:
            listener.machine.ports.pop(listener.port, None)
        process.listeners.clear()

    # --- asyncio's side ----------------------------------------------------------------------

    def listen(self, process: Process, factory: Callable[[], Any], port: int) -> Listener:
        """Binds a port of the process's machine."""
        machine = self.machines[process.host]
        port = port or self._port()
        if port in machine.ports:
            raise OSError(98, "Address already in use (simulated)")
        listener = Listener(self, machine, port, factory, process, contextvars.copy_context())
        machine.ports[port] = listener
        process.listeners.append(listener)
        return listener

    async def connect(
        self, process: Process, factory: Callable[[], Any], address: str, port: int
    ) -> tuple[Any, Any]:
        """Opens a connection; waits for as long as nobody answers."""
        target = self.by_address.get(address)
        if target is None:
            raise OSError(101, f"Network is unreachable: {address}")
        there, back = self.links[process.host, target.name], self.links[target.name, process.host]
        # One round trip; a lost SYN is sent again, as long as the caller has patience.
        while True:
            await asyncio.sleep(self.latency(there))
            if target.is_on and not there.is_cut and not back.is_cut:
                break
            there.lost += 1
            self.held_back += 1
            await asyncio.sleep(SYN_RETRY_S * self.random.uniform(0.5, 1.5))
        listener = target.ports.get(port)
        if listener is None or listener.process is None or not listener.process.is_alive:
            await asyncio.sleep(self.latency(back))
            raise ConnectionRefusedError(111, f"Connect call failed ({address}, {port})")
        source = (self.machines[process.host].address, self._port())
        here = Endpoint(self, process, contextvars.copy_context(), source, (address, port))
        peer = Endpoint(self, listener.process, listener.context, (address, port), source)
        self._join(here, peer)
        peer.open_with(listener.factory)
        try:
            await asyncio.sleep(self.latency(back))
            if here.is_lost:
                raise ConnectionResetError("reset while connecting (simulated)")
        except BaseException:
            here.abort()
            raise
        protocol = factory()
        here.protocol = protocol
        protocol.connection_made(here)
        here.flush_inbox()
        return here, protocol

    def _join(self, here: Endpoint, peer: Endpoint) -> None:
        number = self._next_id
        self._next_id += 1
        for source, target in ((here, peer), (peer, here)):
            pair = (source.process.host, target.process.host)
            pipe = Pipe(self, number, pair, source, target)
            source.out = pipe
            source.id = number
            source.peer = target
            source.process.endpoints[number] = source
            self.pipes.setdefault(pair, {})[id(pipe)] = pipe

    def forget(self, pipe: Pipe) -> None:
        """Drops a stream of which nothing is left."""
        self.pipes[pipe.pair].pop(id(pipe), None)

    def latency(self, link: LinkState) -> float:
        """Draws the time a packet takes."""
        if link.jitter_s:
            return link.delay_s + link.jitter_s * self.random.random()
        return link.delay_s

    def after(self, delay_s: float, callback: Callable[..., None], *args: Any) -> None:
        """Schedules something that no process owns."""
        self.loop.call_later(delay_s, callback, *args, context=self._free)

    def note(self, data: bytes) -> None:
        """Makes a delivery part of the run's fingerprint."""
        self.digest.update(b"%a%b" % (self.loop.time(), data))

    def _port(self) -> int:
        self._next_port += 1
        return self._next_port


class Listener:
    """A bound port; stands in for `asyncio.Server`."""

    def __init__(
        self,
        network: Network,
        machine: Machine,
        port: int,
        factory: Callable[[], Any],
        process: Process,
        context: contextvars.Context,
    ) -> None:
        self.network = network
        self.machine = machine
        self.port = port
        self.factory = factory
        self.process: Process | None = process
        self.context = context

    @property
    def sockets(self) -> list[Listener]:
        """What carries `getsockname`; itself."""
        return [self]

    def getsockname(self) -> tuple[str, int]:
        """Returns the bound address."""
        return self.machine.address, self.port

    def fileno(self) -> int:
        """Returns what the operating system calls it: nothing."""
        return -1

    async def start_serving(self) -> None:
        """Does nothing: who listens here serves; there is no moment in between."""

    def is_serving(self) -> bool:
        """Whether it still listens."""
        return self.machine.ports.get(self.port) is self

    def close(self) -> None:
        """Stops listening."""
        if self.machine.ports.get(self.port) is self:
            del self.machine.ports[self.port]

    async def wait_closed(self) -> None:
        """Returns at once."""
