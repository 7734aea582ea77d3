"""Connections: two ordered byte streams and their ends, the transports of the code under test."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import socket
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from jepsen_tests.sim.loop import Process

if TYPE_CHECKING:
    from jepsen_tests.sim.network import Network

KERNEL_BUFFER_BYTES = 256 * 1024
FIN = b"\0FIN"
RST = b"\0RST"


class Pipe:
    """One direction of a connection."""

    def __init__(
        self,
        network: Network,
        number: int,
        pair: tuple[str, str],
        source: Endpoint,
        target: Endpoint,
    ) -> None:
        self.network = network
        self.number = number
        self.pair = pair
        self.source = source
        self.target = target
        self.link = network.links[pair]
        self.reverse = network.links[pair[1], pair[0]]
        self.traffic = network.traffic.setdefault(pair, [0, 0])
        self.queue: deque[tuple[float, bytes]] = deque()
        self.arrival = 0.0
        self.unread = 0  # bytes sent and not consumed on the other side
        self.is_stuck = False
        self.stuck_at = 0.0
        self.timer_set = False

    def push(self, data: bytes) -> None:
        """Sends bytes, FIN or RST."""
        network, link = self.network, self.link
        now = network.loop.time()
        delay = network.latency(link)
        if link.rate:
            delay += len(data) / link.rate
            at = max(now, self.arrival) + delay
        else:
            at = max(now + delay, self.arrival)
        self.arrival = at
        self.unread += len(data)
        self.queue.append((at, data))
        if not self.timer_set and not self.is_stuck:
            self.timer_set = True
            network.after(at - now, self._fire)

    def _fire(self) -> None:
        self.timer_set = False
        network, target = self.network, self.target
        if self.link.is_cut or not network.machines[self.pair[1]].is_on:
            if self.queue:
                self._stick()
            return
        if self.reverse.is_cut and self.queue:
            self._stick(delivering=True)  # it arrives, but no acknowledgement comes back
        now = network.loop.time()
        chunk: list[bytes] = []
        queue = self.queue
        while queue and queue[0][0] <= now + 1e-9:
            data = queue.popleft()[1]
            if data is FIN or data is RST:
                if chunk:
                    target.receive(b"".join(chunk))
                    chunk = []
                target.receive(data)
            elif len(data) > 1 and network.random.random() < network.split_chance:
                # A stream has no message boundaries; make the receiver notice.
                at = network.random.randrange(1, len(data))
                chunk.append(data[:at])
                target.receive(b"".join(chunk))
                chunk = [data[at:]]
            else:
                chunk.append(data)
        if chunk:
            target.receive(chunk[0] if len(chunk) == 1 else b"".join(chunk))
        if queue and not self.timer_set and not self.is_stuck:
            self.timer_set = True
            network.after(max(0.0, queue[0][0] - network.loop.time()), self._fire)

    def _stick(self, *, delivering: bool = False) -> None:
        if not delivering:
            self.network.held_back += 1
            self.link.lost += 1
            self.is_stuck = True
        if not self.stuck_at:
            self.stuck_at = self.network.loop.time()
            timeout_s = self.source.user_timeout_s
            if timeout_s:
                self.network.after(timeout_s, self._check_timeout, self.stuck_at)

    def _check_timeout(self, stuck_at: float) -> None:
        if self.stuck_at == stuck_at and not self.source.is_lost:
            self.source.lose(TimeoutError("ETIMEDOUT (simulated)"))

    def hurry(self) -> None:
        """The link is fast again: what waits for its turn arrives now."""
        network = self.network
        now = network.loop.time()
        self.queue = deque((min(at, now), data) for at, data in self.queue)
        self.arrival = now
        if self.queue and not self.is_stuck:
            network.after(0.0, self._fire)

    def healed(self, delay_s: float) -> None:
        """Lets what waited arrive after a while."""
        self.stuck_at = 0.0
        if not self.is_stuck:
            return
        self.is_stuck = False
        now = self.network.loop.time()
        waited = [(max(at, now + delay_s), data) for at, data in self.queue]
        self.queue = deque(waited)
        if waited:
            self.arrival = max(self.arrival, waited[-1][0])
            if not self.timer_set:
                self.timer_set = True
                self.network.after(waited[0][0] - now, self._fire)


class _Socket:
    """Takes the one socket option that matters here."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    def setsockopt(self, level: int, option: int, value: int) -> None:
        """Notes the TCP user timeout, in ms."""
        if level == socket.IPPROTO_TCP and option == getattr(socket, "TCP_USER_TIMEOUT", -1):
            self._endpoint.user_timeout_s = value / 1000


class Endpoint(asyncio.Transport):
    """One end of a connection; what the code under test gets as its transport."""

    out: Pipe
    peer: Endpoint

    def __init__(
        self,
        network: Network,
        process: Process,
        context: contextvars.Context,
        local: tuple[str, int],
        remote: tuple[str, int],
    ) -> None:
        super().__init__()
        self.network = network
        self.process = process
        self.context = context
        self.id = 0
        self.protocol: Any = None
        self.user_timeout_s = 0.0
        self.is_lost = False
        self._local = local
        self._remote = remote
        self._closing = False
        self._eof_sent = False
        self._gone = False  # the process is dead
        self._inbox: deque[bytes] = deque()
        self._reading = True
        self._high = 64 * 1024
        self._low = 16 * 1024
        self._writing_paused = False

    # --- asyncio.Transport -------------------------------------------------------------------

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Returns addresses and a stand-in for the socket."""
        if name == "peername":
            return self._remote
        if name == "sockname":
            return self._local
        return _Socket(self) if name == "socket" else default

    def is_closing(self) -> bool:
        """Whether nothing can be written any more."""
        return self._closing or self.is_lost

    def write(self, data: Any) -> None:
        """Sends bytes."""
        if self._closing or self.is_lost or self._gone or not data:
            return
        self.out.push(bytes(data))
        self._check_high_water()

    def writelines(self, list_of_data: Any) -> None:
        """Sends several buffers."""
        self.write(b"".join(list_of_data))

    def write_eof(self) -> None:
        """Ends our direction."""
        if not self._eof_sent and not self.is_lost and not self._gone:
            self._eof_sent = True
            self.out.push(FIN)

    def can_write_eof(self) -> bool:
        """Yes."""
        return True

    def close(self) -> None:
        """Sends what was accepted, then ends."""
        if self._closing or self.is_lost:
            return
        self._closing = True
        self.write_eof()
        self._schedule_lost(None)

    def abort(self) -> None:
        """Ends now."""
        if self.is_lost or self._gone:
            return
        self._closing = True
        self.out.push(RST)
        self._schedule_lost(None)

    def get_write_buffer_size(self) -> int:
        """Bytes that neither peer nor network has taken."""
        return max(0, self.out.unread - KERNEL_BUFFER_BYTES)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """Returns low and high water."""
        return self._low, self._high

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Sets when the protocol is told to pause."""
        self._high = 64 * 1024 if high is None else high
        self._low = self._high // 4 if low is None else low

    def pause_reading(self) -> None:
        """Takes nothing more."""
        self._reading = False

    def resume_reading(self) -> None:
        """Takes what waits."""
        if not self._reading:
            self._reading = True
            self.network.loop.call_soon(self.flush_inbox, context=self.context)

    def is_reading(self) -> bool:
        """Whether bytes are taken."""
        return self._reading

    # --- the network's side ------------------------------------------------------------------

    def open_with(self, factory: Callable[[], Any]) -> None:
        """Creates the accepting side's protocol, in its own process."""

        def accept() -> None:
            if self.is_lost or self._gone:
                return
            self.protocol = factory()
            self.protocol.connection_made(self)
            self.flush_inbox()

        self.network.loop.call_soon(accept, context=self.context)

    def receive(self, data: bytes) -> None:
        """Takes what arrived."""
        self.network.delivered += 1
        if self._gone or self.is_lost or not self.process.is_alive:
            if data is not RST and data is not FIN and not self.peer.is_lost:
                self.out.push(RST)
            return
        if data is RST:
            self.lose_soon(ConnectionResetError("connection reset by peer (simulated)"))
            return
        self._inbox.append(data)
        if self.process.is_paused or self.protocol is None:
            self.network.loop.call_soon(self.flush_inbox, context=self.context)
        else:
            self.context.run(self.flush_inbox)

    def flush_inbox(self) -> None:
        """Hands what arrived to the protocol."""
        inbox = self._inbox
        while inbox and self._reading and not self.is_lost and self.protocol is not None:
            data = inbox.popleft()
            if data is FIN:
                self._take_eof()
                continue
            network = self.network
            network.note(data)
            size = len(data)
            network.delivered_bytes += size
            traffic = self.peer.out.traffic
            traffic[0] += 1
            traffic[1] += size
            self._consumed(size)
            if self._closing:
                continue
            try:
                self.protocol.data_received(data)
            except Exception as error:
                network.loop.call_exception_handler(
                    {"message": f"data_received failed in {self.process.name}", "exception": error}
                )
                self.abort()
                return

    def _take_eof(self) -> None:
        if self._closing:
            return
        try:
            keep_open = self.protocol.eof_received()
        except Exception as error:
            self.network.loop.call_exception_handler(
                {"message": "eof_received failed", "exception": error}
            )
            keep_open = False
        if not keep_open:
            self.close()

    def lose(self, error: Exception | None) -> None:
        """The connection is gone on this side; the other is told if it can be reached."""
        if self.is_lost or self._gone:
            return
        self.out.push(RST)
        self.lose_soon(error)

    def lose_soon(self, error: Exception | None) -> None:
        """The connection is gone on this side."""
        if self.is_lost or self._gone:
            return
        self._schedule_lost(error)

    def vanish(self, *, told: bool) -> None:
        """The process is dead; its kernel says so, or nothing does."""
        if self.is_lost or self._gone:
            return
        self._gone = True
        if told:
            self.out.push(RST if self.network.random.random() < 0.5 else FIN)

    def _schedule_lost(self, error: Exception | None) -> None:
        self.is_lost = True
        self._closing = True
        self.process.endpoints.pop(self.id, None)
        self.network.loop.call_soon(self._report_lost, error, context=self.context)
        if self.peer.is_lost or self.peer._gone:
            self.network.forget(self.out)
            self.network.forget(self.peer.out)

    def _report_lost(self, error: Exception | None) -> None:
        if self.protocol is not None:
            self.protocol.connection_lost(error)

    def _consumed(self, count: int) -> None:
        sender = self.peer
        pipe = sender.out
        pipe.unread -= count
        if sender._writing_paused and sender.get_write_buffer_size() <= sender._low:
            sender._writing_paused = False
            if not sender.is_lost and not sender._gone and sender.protocol is not None:
                self.network.loop.call_soon(sender.protocol.resume_writing, context=sender.context)

    def _check_high_water(self) -> None:
        if (
            not self._writing_paused
            and self.protocol is not None
            and self.get_write_buffer_size() > self._high
        ):
            self._writing_paused = True
            with contextlib.suppress(AttributeError):
                self.protocol.pause_writing()
