"""The asyncio client of the remoting protocol: one shared connection an address."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections import deque
from collections.abc import Callable

import msgspec

from dledger.codes import FRAME_BYTES_MAX, ResponseCode
from dledger.errors import (
    ClientClosedError,
    ConfigError,
    ConnectFailedError,
    FlowControlError,
    InvariantError,
)
from dledger.remoting.commands import Command, Ext
from dledger.remoting.link import AnswerCallback, Asked, Body, Link, LinkLimits

logger = logging.getLogger(__name__)

_CLOSE_TIMEOUT_S = 1.0  # a server that stands still may not keep a client from ending


class ClientConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of a client. Requests above `inflight_max` on one connection wait for their turn."""

    connect_timeout_s: float = 3.0
    request_timeout_s: float = 3.0
    inflight_max: int = 4096
    frame_bytes_max: int = FRAME_BYTES_MAX
    write_high_water_bytes: int = 4 * 1024 * 1024
    write_bytes_max: int = 128 * 1024 * 1024

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if value <= 0:
                raise ConfigError(name, value, "must be positive")


class ClientConnection(Link):
    """The client's end of a connection."""

    def __init__(self, client: RemotingClient, address: str, limits: LinkLimits) -> None:
        super().__init__(limits)
        self.address = address
        self._client = client
        self._inflight = 0
        self._inflight_max = client.config.inflight_max
        self._turns: deque[asyncio.Future[None]] = deque()

    def __repr__(self) -> str:
        return f"<ClientConnection {self.address} inflight={self._inflight}>"

    async def exchange(self, code: int, ext: Ext, body: Body, timeout_s: float) -> Command:
        """Sends a request when its turn has come, and waits for the response."""
        if self._inflight >= self._inflight_max or self._write_paused or self._turns:
            begin = self._loop.time()
            await self._wait_turn(timeout_s)
            timeout_s -= self._loop.time() - begin
        else:
            self._inflight += 1
        try:
            if timeout_s <= 0:
                raise FlowControlError(f"no time left to send a request to {self.address}")
            return await self.request(code, ext, body, timeout_s)
        finally:
            self._inflight -= 1
            if self._turns:
                self._give_turns()

    @property
    def has_room(self) -> bool:
        """Whether a request would leave at once."""
        return (
            not self._closing
            and self._inflight < self._inflight_max
            and not self._write_paused
            and not self._turns
        )

    def ask(self, code: int, ext: Ext, body: Body, callback: AnswerCallback) -> Asked:
        """Sends a request without waiting for its turn, so only if there `has_room`."""
        asked = super().ask(code, ext, body, callback)
        self._inflight += 1
        return asked

    def _ask_over(self, opaque: int) -> None:
        super()._ask_over(opaque)
        self._inflight -= 1
        if self._turns:
            self._give_turns()

    async def exchange_oneway(self, code: int, ext: Ext, body: Body, timeout_s: float) -> None:
        """Sends a one-way request when the peer has taken enough of what was sent before."""
        if self._write_paused or self._turns:
            await self._wait_turn(timeout_s)
            self._inflight -= 1
            self._give_turns()
        if self._closing:
            raise ConnectFailedError(f"the connection to {self.address} is closed")
        self.send_oneway(code, ext, body)

    async def _wait_turn(self, timeout_s: float) -> None:
        turn: asyncio.Future[None] = self._loop.create_future()
        self._turns.append(turn)
        try:
            async with asyncio.timeout(timeout_s):
                await turn
        except BaseException as exc:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self._inflight -= 1  # it came too late
                self._give_turns()
            if isinstance(exc, TimeoutError):
                raise FlowControlError(
                    f"{self._inflight} requests to {self.address} are under way; nothing was sent"
                ) from exc
            raise

    def _give_turns(self) -> None:
        turns = self._turns
        while turns and self._inflight < self._inflight_max and not self._write_paused:
            turn = turns.popleft()
            if not turn.done():
                self._inflight += 1
                turn.set_result(None)

    def _on_writable(self) -> None:
        self._give_turns()

    def _on_request(self, command: Command) -> None:
        on_request = self._client.on_request
        if on_request is None:
            remark = f" request type {command.code} not supported"
            self.reply(command, ResponseCode.REQUEST_CODE_NOT_SUPPORTED, None, remark)
            return
        try:
            on_request(self, command)
        except InvariantError:
            raise
        except Exception as exc:
            logger.exception("server's request failed: code=%d peer=%s", command.code, self.peer)
            if not command.answered:
                self.reply_error(command, exc)

    def _on_lost(self) -> None:
        self._client._left(self)
        turns, self._turns = self._turns, deque()
        for turn in turns:
            if not turn.done():
                turn.set_exception(
                    ConnectFailedError(f"connection to {self.address} lost before sending")
                )


class RemotingClient:
    """Sends requests to any number of servers.

    Requests to one address share a connection and are pipelined; those of one turn of the event
    loop leave in one write. A connection is made when first needed and again after a loss; a
    failure to connect is reported at once and not retried here. A request that times out leaves
    the connection open.

    Concurrency:
        On one event loop. All coroutines are safe to cancel; a request may have been sent.
    """

    def __init__(
        self,
        config: ClientConfig | None = None,
        on_request: Callable[[ClientConnection, Command], None] | None = None,
        on_connection_lost: Callable[[ClientConnection], None] | None = None,
    ) -> None:
        self.config = config or ClientConfig()
        self.on_request = on_request
        self._on_connection_lost = on_connection_lost
        self._connections: dict[str, ClientConnection] = {}
        self._connecting: dict[str, asyncio.Task[ClientConnection]] = {}
        self._closed = False
        self._limits = LinkLimits(
            frame_bytes_max=self.config.frame_bytes_max,
            write_high_water_bytes=self.config.write_high_water_bytes,
            write_bytes_max=self.config.write_bytes_max,
            waiters_max=self.config.inflight_max,
            close_timeout_s=_CLOSE_TIMEOUT_S,
        )

    @property
    def connections(self) -> list[ClientConnection]:
        """The open connections."""
        return list(self._connections.values())

    def ready(self, address: str) -> ClientConnection | None:
        """Returns the open connection to an address if a request would leave there at once."""
        connection = self._connections.get(address)
        return connection if connection is not None and connection.has_room else None

    async def request(
        self,
        address: str,
        code: int,
        ext: Ext = None,
        body: Body = b"",
        timeout_s: float | None = None,
    ) -> Command:
        """Sends a request and returns its response, whatever its code.

        Args:
            address: `host:port`.
            code: A `RequestCode`.
            ext: Extension fields or a header record.
            body: One buffer or several; kept, not copied, until written.
            timeout_s: For all of it, connecting included; the configured one if `None`.

        Raises:
            ConnectFailedError: No connection, or it broke before the request was written.
            FlowControlError: The turn of this request did not come in time. Nothing was sent.
            ConnectionLostError: The connection broke afterwards. Indefinite.
            RequestTimeoutError: No answer in time. Indefinite.
            LocalProtocolError: The request exceeds 16 MiB or cannot be encoded.
            ClientClosedError: `close` has been called.
        """
        timeout_s = self.config.request_timeout_s if timeout_s is None else timeout_s
        connection = self._connections.get(address)
        if connection is None or connection.is_closing:
            begin = asyncio.get_running_loop().time()
            connection = await self.connect(address, timeout_s)
            timeout_s -= asyncio.get_running_loop().time() - begin
        return await connection.exchange(code, ext, body, timeout_s)

    async def send_oneway(self, address: str, code: int, ext: Ext = None, body: Body = b"") -> None:
        """Sends a request that gets no answer. On return it has been accepted, not written.

        Raises:
            ConnectFailedError: No connection.
            FlowControlError: The peer does not read. Nothing was sent.
            LocalProtocolError: The request exceeds 16 MiB or cannot be encoded.
            ClientClosedError: `close` has been called.
        """
        connection = self._connections.get(address)
        if connection is None or connection.is_closing:
            connection = await self.connect(address)
        await connection.exchange_oneway(code, ext, body, self.config.request_timeout_s)

    async def connect(self, address: str, timeout_s: float | None = None) -> ClientConnection:
        """Returns the open connection to an address, making it if need be.

        Raises:
            ConnectFailedError: It cannot be made in time.
            ClientClosedError: `close` has been called.
        """
        if self._closed:
            raise ClientClosedError("the remoting client is closed")
        connection = self._connections.get(address)
        if connection is not None and not connection.is_closing:
            return connection
        task = self._connecting.get(address)
        if task is None:
            task = asyncio.get_running_loop().create_task(
                self._connect(address), name=f"connect {address}"
            )
            self._connecting[address] = task
            task.add_done_callback(lambda done: self._connected(address, done))
        try:
            # Shielded: others may wait for the same connection when this caller gives up.
            async with asyncio.timeout(timeout_s):
                return await asyncio.shield(task)
        except TimeoutError as exc:
            raise ConnectFailedError(f"cannot connect to {address}: timed out") from exc
        except asyncio.CancelledError:
            if task.cancelled() and self._closed:
                raise ClientClosedError("the remoting client was closed") from None
            raise

    def give_up(self, address: str, reason: str) -> None:
        """Ends the connection to an address, if there is one, without waiting for the peer.

        Requests under way there fail with `ConnectionLostError`.
        """
        connection = self._connections.get(address)
        if connection is not None:
            connection.abort(reason)

    async def close(self) -> None:
        """Closes all connections. Requests under way fail with `ConnectionLostError`."""
        self._closed = True
        for task in self._connecting.values():
            task.cancel()
        connections = self.connections
        for connection in connections:
            connection.close()
        for connection in connections:
            await connection.wait_closed()

    async def _connect(self, address: str) -> ClientConnection:
        host, port = split_address(address)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self.config.connect_timeout_s):
                transport, connection = await loop.create_connection(
                    lambda: ClientConnection(self, address, self._limits), host, port
                )
        except TimeoutError as exc:
            raise ConnectFailedError(f"cannot connect to {address}: timed out") from exc
        except OSError as exc:
            # asyncio's text repeats the address; with several addresses there is no number.
            reason = os.strerror(exc.errno) if exc.errno and exc.errno > 0 else exc.strerror or exc
            raise ConnectFailedError(f"cannot connect to {address}: {reason}") from exc
        except (ValueError, OverflowError) as exc:
            raise ConnectFailedError(f"cannot connect to {address}: {exc}") from exc
        if connection.is_closing:
            raise ConnectFailedError(f"cannot connect to {address}: closed at once")
        sock = transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._connections[address] = connection
        return connection

    def _connected(self, address: str, task: asyncio.Task[ClientConnection]) -> None:
        self._connecting.pop(address, None)
        if task.cancelled():
            return
        if task.exception() is None and self._closed:
            task.result().close()

    def _left(self, connection: ClientConnection) -> None:
        if self._connections.get(connection.address) is connection:
            del self._connections[connection.address]
        if self._on_connection_lost is not None:
            self._on_connection_lost(connection)


def split_address(address: str) -> tuple[str, int]:
    """Returns host and port of `host:port`, the host of an IPv6 one without its brackets.

    Raises:
        ConnectFailedError: Not such an address.
    """
    host, colon, port = address.rpartition(":")
    host = host.strip("[]")
    if not colon or not host or not (port.isascii() and port.isdigit()) or int(port) > 0xFFFF:
        raise ConnectFailedError(f"{address!r} is not an address of the form host:port")
    return host, int(port)
