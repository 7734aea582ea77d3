"""The asyncio server of the remoting protocol."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Protocol

import msgspec

from dledger.codes import EXT_OUTCOME, FRAME_BYTES_MAX, OUTCOME_REFUSED, ResponseCode
from dledger.errors import ConfigError, InvariantError
from dledger.listening import close_listener
from dledger.remoting.commands import Command
from dledger.remoting.frames import Frame
from dledger.remoting.link import Link, LinkLimits

logger = logging.getLogger(__name__)

_IDLE_LOOKS = 3  # an idle connection is closed after one third more than the timeout at most


class Handler(Protocol):
    """What a server does with requests."""

    def handle(self, connection: Connection, command: Command) -> None:
        """Takes a request, on the loop, and must not block.

        It is answered now or later through `connection.reply`; a request that is not one-way and
        never answered takes one of its connection's places for good. An exception becomes a
        SYSTEM_ERROR answer and one ERROR line.
        """
        ...

    def connection_lost(self, connection: Connection) -> None:
        """Is told once that a connection is gone; answers to it are dropped from now on."""
        ...


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of a server.

    A connection at `inflight_max` requests, or with more than `write_high_water_bytes` to write,
    is not read from. `write_bytes_max` closes the connection of a peer that asks and never reads.
    `inflight_bytes_max` counts the bodies of unanswered requests over all connections; requests
    above it get SYSTEM_BUSY.
    """

    frame_bytes_max: int = FRAME_BYTES_MAX
    inflight_max: int = 4096
    inflight_bytes_max: int = 256 * 1024 * 1024
    connections_max: int = 4096
    write_high_water_bytes: int = 1024 * 1024
    write_bytes_max: int = 64 * 1024 * 1024
    idle_timeout_s: float = 180.0

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if value <= 0:
                raise ConfigError(name, value, "must be positive")
        if self.frame_bytes_max > FRAME_BYTES_MAX:
            raise ConfigError(
                "frame_bytes_max", self.frame_bytes_max, f"must not exceed {FRAME_BYTES_MAX}"
            )


class Connection(Link):
    """The server's end of a connection."""

    def __init__(self, server: RemotingServer, connection_id: int, limits: LinkLimits) -> None:
        super().__init__(limits)
        self.id = connection_id
        self._server = server
        self._inflight = 0
        self._inflight_bytes = 0
        self._inflight_max = server.config.inflight_max
        self._silent_looks = 0
        self._takes_runs = True

    def __repr__(self) -> str:
        return f"<Connection {self.id} {self.peer} inflight={self._inflight}>"

    @property
    def inflight(self) -> int:
        """Requests taken and not answered."""
        return self._inflight

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Joins the server, or leaves at once when it is full."""
        super().connection_made(transport)
        self._server._joined(self)

    def look_idle(self) -> bool:
        """Returns whether nothing was read for several looks in a row."""
        self._silent_looks = 0 if self._heard else self._silent_looks + 1
        self._heard = False
        return self._silent_looks > _IDLE_LOOKS

    def _may_read(self) -> bool:
        return self._inflight < self._inflight_max and not self._write_paused

    def room(self) -> tuple[int, int]:
        """Returns how many requests more may be taken, and how many bytes in their bodies."""
        server = self._server
        return (
            self._inflight_max - self._inflight,
            server.config.inflight_bytes_max - server.inflight_bytes,
        )

    def took(self, count: int, size_bytes: int) -> None:
        """Notes that a `TakeRun` has taken requests with so many bytes in their bodies."""
        self._inflight += count
        self._inflight_bytes += size_bytes
        self._server.inflight += count
        self._server.inflight_bytes += size_bytes

    def reply_run(self, answers: bytes, count: int, size_bytes: int) -> None:
        """Answers requests that a `TakeRun` has taken; does nothing on a closed connection.

        Args:
            answers: Whole frames.
            count: Of requests.
            size_bytes: Of their bodies.
        """
        if not self._closing:
            self._write(answers, (), len(answers))
        self._release(count, size_bytes)

    def _take_run(self, frames: deque[Frame]) -> bool:
        take_run = self._server.take_run
        return take_run is not None and take_run(self, frames)

    def _on_request(self, command: Command) -> None:
        size = len(command.body)
        self.took(1, size)
        server = self._server
        if server.inflight_bytes > server.config.inflight_bytes_max and size:
            remark = f"[OVERLOAD] {server.inflight_bytes} bytes of requests are under way"
            self.reply(command, ResponseCode.SYSTEM_BUSY, {EXT_OUTCOME: OUTCOME_REFUSED}, remark)
            self._release_oneway(command)
            return
        try:
            server.handler.handle(self, command)
        except InvariantError:
            raise
        except Exception as exc:
            logger.exception("request failed: code=%d peer=%s", command.code, self.peer)
            if not command.answered:
                self.reply_error(command, exc)
        self._release_oneway(command)

    def _release_oneway(self, command: Command) -> None:
        # Nothing is answered, so its place is free as soon as the handler has returned.
        if command.is_oneway:
            command.answered = True
            self._finished(command)

    def _finished(self, command: Command) -> None:
        self._release(1, len(command.body))

    def _release(self, count: int, size_bytes: int) -> None:
        if self._lost.done():
            return  # `_on_lost` has given back everything
        self._inflight -= count
        self._inflight_bytes -= size_bytes
        self._server._released(count, size_bytes)
        if self._read_paused:
            self._update_reading()

    def _on_lost(self) -> None:
        self._server._left(self)
        self._server._released(self._inflight, self._inflight_bytes)


# Takes requests that it knows a short way for from the front of what has come; whether it took
# any. It calls `Connection.took` for them, and answers each later, by `reply_run` or as a command.
# The others come to the handler.
TakeRun = Callable[[Connection, deque[Frame]], bool]


class RemotingServer:
    """Listens, and hands requests to a handler."""

    def __init__(self, handler: Handler, config: ServerConfig | None = None) -> None:
        self.handler = handler
        self.config = config or ServerConfig()
        self.take_run: TakeRun | None = None
        self.inflight = 0  # requests taken and not answered, over all connections
        self.inflight_bytes = 0  # of their bodies
        self._connections: dict[int, Connection] = {}
        self._next_id = 1
        self._server: asyncio.Server | None = None
        self._listeners: list[asyncio.Server] = []  # that one and those of `listen`
        self._stopping = False
        self._idle: asyncio.Future[None] | None = None
        self._sweep: asyncio.TimerHandle | None = None
        self._limits = LinkLimits(
            frame_bytes_max=self.config.frame_bytes_max,
            write_high_water_bytes=self.config.write_high_water_bytes,
            write_bytes_max=self.config.write_bytes_max,
        )

    @property
    def port(self) -> int:
        """The port that is listened on; 0 before `start`."""
        if self._server is None or not self._server.sockets:
            return 0
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    @property
    def connections(self) -> list[Connection]:
        """The open connections."""
        return list(self._connections.values())

    async def start(self, host: str, port: int) -> None:
        """Begins to listen; port 0 takes any free one.

        Raises:
            ConfigError: The address cannot be listened on.
        """
        self._server = await self.listen(host, port)
        self._sweep = asyncio.get_running_loop().call_later(self._look_s, self._look_for_idle)

    async def listen(self, host: str, port: int) -> asyncio.Server:
        """Begins to listen on one more address, for the caller to `close_listener` again.

        Raises:
            ConfigError: The address cannot be listened on.
        """
        loop = asyncio.get_running_loop()
        try:
            # Not serving yet: whoever cancels us meanwhile leaves nothing open behind.
            listener = await loop.create_server(
                self._new_connection,
                host,
                port,
                backlog=1024,
                reuse_address=True,
                start_serving=False,
            )
        except (OSError, ValueError, OverflowError) as exc:
            why = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
            raise ConfigError("listen address", f"{host}:{port}", why) from exc
        self._listeners = [known for known in self._listeners if known.is_serving()]
        self._listeners.append(listener)
        try:
            await listener.start_serving()
        except BaseException:
            listener.close()
            raise
        if self._stopping:  # meanwhile: nobody else would close it
            close_listener(listener)
        return listener

    async def stop(self, drain_s: float = 3.0) -> None:
        """Stops listening, lets unanswered requests be answered, then closes all connections.

        Args:
            drain_s: How long to wait for answers, and then for peers to take them.
        """
        if self._stopping:
            return
        self._stopping = True
        loop = asyncio.get_running_loop()
        deadline = loop.time() + drain_s
        if self._sweep is not None:
            self._sweep.cancel()
        closing = [close_listener(listener) for listener in self._listeners]
        for connection in self.connections:
            connection._stop_reading()
        await asyncio.gather(*closing)
        if self.inflight:
            self._idle = loop.create_future()
            await asyncio.wait({self._idle}, timeout=drain_s)
            if self.inflight:
                logger.warning("stopped with %d unanswered requests", self.inflight)
        open_connections = self.connections
        for connection in open_connections:
            connection.close()
        if open_connections:
            closed = [asyncio.ensure_future(c.wait_closed()) for c in open_connections]
            await asyncio.wait(closed, timeout=max(0.25, deadline - loop.time()))
            for connection in open_connections:
                connection._abort_unless_lost()
            await asyncio.wait(closed)
        if self._server is not None:
            await self._server.wait_closed()

    @property
    def _look_s(self) -> float:
        return self.config.idle_timeout_s / _IDLE_LOOKS

    def _new_connection(self) -> Connection:
        connection = Connection(self, self._next_id, self._limits)
        self._next_id += 1
        return connection

    def _joined(self, connection: Connection) -> None:
        if len(self._connections) >= self.config.connections_max:
            logger.warning(
                "connection refused: the limit is %d peer=%s",
                self.config.connections_max,
                connection.peer,
            )
            connection.close()
        elif self._stopping:
            connection.close()
        else:
            self._connections[connection.id] = connection

    def _left(self, connection: Connection) -> None:
        if self._connections.pop(connection.id, None) is None:
            return  # it never came in
        try:
            self.handler.connection_lost(connection)
        except Exception:
            logger.exception("handling a lost connection failed: peer=%s", connection.peer)

    def _released(self, count: int, size_bytes: int) -> None:
        self.inflight -= count
        self.inflight_bytes -= size_bytes
        if self._idle is not None and not self.inflight and not self._idle.done():
            self._idle.set_result(None)

    def _look_for_idle(self) -> None:
        for connection in self.connections:
            if connection.look_idle():
                connection.close(f"nothing read for {self.config.idle_timeout_s:g} s")
        self._sweep = asyncio.get_running_loop().call_later(self._look_s, self._look_for_idle)
