"""Links between parties on one machine without namespaces: a TCP proxy for each directed pair.

Every party dials every other one through a listener of that pair's own. What a link does:

* It never drops a byte of a stream. A cut stops the reading of what goes in its direction, so that
  buffers fill up as before a black hole; a short one then goes on where it stopped, a long one ends
  in a reset of both sides, as if time limits had run out.
* A connection that is made during a cut is held, unanswered, until the heal.
* An end or a reset does not cross a cut either; it is delivered at the heal.

What it cannot do: lose, repeat, reorder or damage packets; and a sender sees success until the
(small) buffers are full, where a real cut would leave its bytes unconfirmed.
"""

from __future__ import annotations

import asyncio
import fcntl
import random
import socket
import struct
import termios
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from functools import partial
from typing import Any, TypeVar

from dledger.listening import close_listener
from jepsen_tests.hosts.cleanup import CleanUp
from jepsen_tests.hosts.network import CONTROL, Pair
from jepsen_tests.hosts.shell import HarnessError

T = TypeVar("T")

LOOPBACK = "127.0.0.1"
# Below the range from which systems take ports for outgoing connections.
_PORTS = (20_000, 30_000)
_BUFFER_BYTES = 16 * 1024
_SEGMENT_BYTES = 2 * 1024
_LONG_CUT_S = 3.0
_RESET = struct.pack("ii", 1, 0)
_STEP_S = 10.0


class _Side(asyncio.Protocol):
    """One of the two connections of a proxied one."""

    def __init__(self, link: _Link, direction: Pair) -> None:
        self.link = link
        self.direction = direction  # of what is read here
        self.transport: asyncio.Transport | None = None
        self.other: _Side | None = None
        self.ended = False
        self.full = False  # the other side takes nothing right now

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        sock = transport.get_extra_info("socket")
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, _BUFFER_BYTES)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.transport is not None:
            self.transport.set_write_buffer_limits(high=_BUFFER_BYTES)
        self.link.made(self)

    def data_received(self, data: bytes) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.write(data)

    def pause_writing(self) -> None:
        if self.other is not None:
            self.other.full = True
            self.other.settle()

    def resume_writing(self) -> None:
        if self.other is not None:
            self.other.full = False
            self.other.settle()

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended = True
        self.link.ended(self)

    def settle(self) -> None:
        """Reads if nothing speaks against it."""
        if self.transport is None or self.transport.is_closing():
            return
        if self.full or self.other is None or self.link.is_cut(self.direction):
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()

    def waiting_bytes(self) -> int:
        """Returns how much has arrived here and is not read."""
        sock = None if self.transport is None else self.transport.get_extra_info("socket")
        if sock is None or sock.fileno() < 0:
            return 0
        try:
            answer = fcntl.ioctl(sock.fileno(), termios.FIONREAD, b"\0\0\0\0")
        except OSError:
            return 0
        return int(struct.unpack("i", answer)[0])

    def abort(self) -> None:
        """Resets the connection."""
        if self.transport is not None and not self.ended:
            sock = self.transport.get_extra_info("socket")
            if sock is not None and sock.fileno() >= 0:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self.transport.abort()


class _Link:
    """One listener: what the first host of a pair dials to reach a port of the second."""

    def __init__(self, proxies: _Proxies, pair: Pair, target: tuple[str, int]) -> None:
        self.pair = pair
        self._proxies = proxies
        self._target = target
        self._near: set[_Side] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.server: asyncio.Server | None = None

    async def start(self) -> int:
        loop = asyncio.get_running_loop()
        factory = partial(_Side, self, self.pair)
        self.server = await loop.create_server(factory, LOOPBACK, 0)
        for listener in self.server.sockets:
            # The loopback's segments are larger than the buffer of `_Side`: a sender with much to
            # send would wait for a window that never opens so far, and send by probes only.
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, _SEGMENT_BYTES)
        return int(self.server.sockets[0].getsockname()[1])

    def is_cut(self, direction: Pair) -> bool:
        return direction in self._proxies.cuts

    def is_blocked(self) -> bool:
        """Whether no connection can be made: that takes both directions."""
        back = (self.pair[1], self.pair[0])
        return self.is_cut(self.pair) or self.is_cut(back)

    def made(self, side: _Side) -> None:
        if side.direction != self.pair:
            return  # ours to the target
        self._near.add(side)
        side.settle()
        if self.is_blocked():
            self._proxies.held += 1
        else:
            self._connect(side)

    def _connect(self, near: _Side) -> None:
        task = asyncio.get_running_loop().create_task(self._reach(near))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _reach(self, near: _Side) -> None:
        far = _Side(self, (self.pair[1], self.pair[0]))
        try:
            await asyncio.get_running_loop().create_connection(lambda: far, *self._target)
        except OSError:
            near.abort()  # nobody listens there: a definite refusal
            return
        if near.ended:
            far.abort()
            return
        near.other, far.other = far, near
        near.settle()
        far.settle()

    def ended(self, side: _Side) -> None:
        self._near.discard(side)
        other = side.other
        if other is None or other.ended:
            return
        # What one side does crosses in the direction of what it sends.
        if self.is_cut(side.direction):
            self._proxies.late_ends.append(other)
        elif other.transport is not None:
            other.transport.close()

    def cuts_changed(self, long_cut: frozenset[Pair]) -> None:
        """Goes on with what is healed."""
        for near in list(self._near):
            far = near.other
            if far is None:
                if not self.is_blocked() and near.transport is not None:
                    self._connect(near)
                continue
            if {near.direction, far.direction} & long_cut:
                near.abort()
                far.abort()
                continue
            near.settle()
            far.settle()

    def waiting_bytes(self) -> int:
        total = 0
        for near in self._near:
            for side in (near, near.other):
                if side is not None and self.is_cut(side.direction):
                    total += side.waiting_bytes()
        return total

    async def close(self) -> None:
        if self.server is not None:
            await close_listener(self.server)
        for near in list(self._near):
            near.abort()
            if near.other is not None:
                near.other.abort()


class _Proxies:
    """What lives on the loop of the proxies' thread."""

    def __init__(self) -> None:
        self.cuts: frozenset[Pair] = frozenset()
        self.held = 0
        self.late_ends: list[_Side] = []
        self._kept_back = 0
        self._since: dict[Pair, float] = {}
        self._links: list[_Link] = []

    async def add(self, pair: Pair, target: tuple[str, int]) -> int:
        link = _Link(self, pair, target)
        self._links.append(link)
        return await link.start()

    async def cut(self, pairs: frozenset[Pair]) -> None:
        now = time.monotonic()
        self._kept_back += self._waiting()
        healed = self.cuts - pairs
        long_cut = frozenset(p for p in healed if now - self._since.pop(p, now) > _LONG_CUT_S)
        for pair in pairs - self.cuts:
            self._since[pair] = now
        self.cuts = pairs
        late, self.late_ends = self.late_ends, []
        for side in late:
            if side.other is not None and side.other.direction in pairs:
                self.late_ends.append(side)
            elif side.transport is not None:
                side.transport.close()
        for link in self._links:
            link.cuts_changed(long_cut)

    async def dropped(self) -> int:
        return self.held + self._kept_back + self._waiting()

    async def close(self) -> None:
        for link in self._links:
            await link.close()

    def _waiting(self) -> int:
        return sum(link.waiting_bytes() for link in self._links)


class ProxyNetwork:
    """Parties on the loopback, every directed pair of them behind proxies of its own."""

    kind = "proxy"

    def __init__(self, hosts: Sequence[str], clean_up: CleanUp) -> None:
        """Starts the thread of the proxies.

        Args:
            hosts: Names; the control host is added and needs no proxy.
            clean_up: Ends the thread.
        """
        self.hosts = [*hosts, CONTROL]
        self._proxies = _Proxies()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxies", daemon=True)
        self._thread.start()
        clean_up.add("proxies", self._close)

    def address(self, host: str) -> str:
        """Returns the loopback address: parties differ by ports."""
        return LOOPBACK

    def command_prefix(self, host: str) -> tuple[str, ...]:
        """Returns nothing: commands run right here."""
        return ()

    def open(self, pair: Pair, port: int) -> str:
        """Makes a proxy from the first host of a pair to a port of the second.

        Returns:
            What the first host shall dial.
        """
        return f"{LOOPBACK}:{self._do(self._proxies.add(pair, (LOOPBACK, port)))}"

    def cut(self, pairs: Iterable[Pair]) -> None:
        """Holds back what goes from the first to the second host of each pair."""
        self._do(self._proxies.cut(frozenset(pairs)))

    def dropped(self) -> int:
        """Returns how many bytes and new connections cuts have kept back so far."""
        return self._do(self._proxies.dropped())

    def call(self, function: Callable[[], T]) -> T:
        """Calls a function right here: the harness dials real addresses."""
        return function()

    def reset(self) -> None:
        """Ends every cut."""
        self.cut(())

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            return asyncio.run_coroutine_threadsafe(work, self._loop).result(_STEP_S)
        except (OSError, TimeoutError) as error:
            raise HarnessError(f"the proxies: {error!r}") from error

    def _close(self) -> None:
        self._do(self._proxies.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5.0)
        self._loop.close()


def free_ports(count: int, chance: random.Random) -> list[int]:
    """Returns ports that nobody listens on, outside the range of outgoing connections.

    Raises:
        HarnessError: There are not enough.
    """
    found: list[int] = []
    for port in chance.sample(range(*_PORTS), 20 * count):
        with socket.socket() as probe:
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise HarnessError(f"no {count} free ports in {_PORTS[0]}..{_PORTS[1]}")
