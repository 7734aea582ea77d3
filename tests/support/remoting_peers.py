"""Scripted ends of remoting connections."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import uvloop

from dledger.remoting.commands import Command, decode_command, encode_request
from dledger.remoting.frames import FrameDecoder
from dledger.remoting.server import Connection, RemotingServer, ServerConfig


def run(main: Callable[[], Awaitable[Any]], *, fast_loop: bool = False) -> Any:
    """Runs a test on a loop of its own and fails it if anything went wrong in the background."""
    problems: list[dict[str, Any]] = []

    async def wrapped() -> Any:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: problems.append(context))
        async with asyncio.timeout(30):
            return await main()

    factory = uvloop.new_event_loop if fast_loop else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        result = runner.run(wrapped())
    assert not problems, problems
    return result


async def until(condition: Callable[[], object], *, within_s: float = 10.0) -> None:
    """Waits for a condition with a deadline."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        await asyncio.sleep(0.002)


class ScriptedHandler:
    """Keeps every request; answers at once with `answer`, or not at all."""

    def __init__(self, answer: Callable[[Connection, Command], None] | None = None) -> None:
        self.answer = answer
        self.requests: list[tuple[Connection, Command]] = []
        self.lost: list[Connection] = []

    def handle(self, connection: Connection, command: Command) -> None:
        self.requests.append((connection, command))
        if self.answer is not None:
            self.answer(connection, command)

    def connection_lost(self, connection: Connection) -> None:
        self.lost.append(connection)


def echo(connection: Connection, command: Command) -> None:
    """Answers with the request's own fields and body."""
    connection.reply(command, 0, command.ext, body=command.body)


@asynccontextmanager
async def serving(
    handler: ScriptedHandler, **config: Any
) -> AsyncIterator[tuple[RemotingServer, str]]:
    """A server on a free port, and its address."""
    server = RemotingServer(handler, ServerConfig(**config))
    await server.start("127.0.0.1", 0)
    try:
        yield server, f"127.0.0.1:{server.port}"
    finally:
        await server.stop(0.2)


class RawPeer:
    """A bare socket that writes what it is told and reads only when asked."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.decoder = FrameDecoder()

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    def request(self, code: int, opaque: int, ext: Any = None, body: bytes = b"") -> None:
        self.send(encode_request(code, opaque, ext, body))

    async def receive(self) -> Command | None:
        """Returns the next command, or `None` at the end of the stream."""
        while (frame := self.decoder.next_frame()) is None:
            try:
                data = await self.reader.read(1 << 18)
            except ConnectionResetError:
                return None
            if not data:
                return None
            self.decoder.receive_data(data)
        return decode_command(frame)

    async def close(self) -> None:
        self.writer.close()
        with suppress(ConnectionError):
            await self.writer.wait_closed()


@asynccontextmanager
async def raw_peer(address: str) -> AsyncIterator[RawPeer]:
    host, port = address.split(":")
    peer = RawPeer(*await asyncio.open_connection(host, int(port)))
    try:
        yield peer
    finally:
        await peer.close()
