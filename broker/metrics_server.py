"""A minimal HTTP listener on the broker's own loop: GET /metrics and nothing else.

A server from a library would bring threads or a framework for what is one answer. Requests are
bounded in size, time and number, and the connection closes after the answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from dledger.errors import ConfigError
from dledger.listening import close_listener

logger = logging.getLogger(__name__)

HEAD_BYTES_MAX = 8 * 1024
REQUEST_S = 5.0
CONNECTIONS_MAX = 16
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class MetricsServer:
    """Serves one text. Nothing is listened to before `start`."""

    def __init__(self, text: Callable[[], bytes]) -> None:
        self._text = text
        self._server: asyncio.Server | None = None
        self._open: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    @property
    def port(self) -> int:
        """The port that was bound; 0 before."""
        return self._server.sockets[0].getsockname()[1] if self._server else 0

    async def start(self, host: str, port: int) -> None:
        """Listens.

        Raises:
            ConfigError: The address cannot be bound.
        """
        try:
            self._server = await asyncio.start_server(
                self._on_connected, host, port, limit=HEAD_BYTES_MAX
            )
        except OSError as error:
            raise ConfigError("metrics_port", port, f"cannot listen: {error}") from error

    async def stop(self) -> None:
        """Listens no more, and breaks off the answers under way."""
        if self._server is not None:
            await close_listener(self._server)
            self._server = None
        if self._open:
            for writer in self._open.values():
                writer.transport.abort()
            await asyncio.wait(list(self._open))

    def _on_connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._open) >= CONNECTIONS_MAX:
            writer.close()
            return
        # Not left to asyncio, which keeps such tasks to itself: `stop` has to end them.
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._open[task] = writer
        task.add_done_callback(self._open.pop)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(REQUEST_S):
                await self._answer(reader, writer)
        except (OSError, TimeoutError, EOFError, asyncio.LimitOverrunError) as error:
            logger.debug("metrics not served: %s", error)
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        method, _, rest = head.partition(b" ")
        path = rest.partition(b" ")[0].partition(b"?")[0]
        if method not in (b"GET", b"HEAD"):
            status, body = "405 Method Not Allowed", b"only GET\n"
        elif path != b"/metrics":
            status, body = "404 Not Found", b"see /metrics\n"
        else:
            status, body = "200 OK", self._text()
        lines = (
            f"HTTP/1.1 {status}",
            f"Content-Type: {CONTENT_TYPE}",
            f"Content-Length: {len(body)}",
            "Connection: close",
        )
        writer.write("\r\n".join((*lines, "", "")).encode())
        if method != b"HEAD":
            writer.write(body)
        await writer.drain()
