"""A nameserver: the processor behind a remoting server, and its expiry task."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from pathlib import Path

from dledger.clock import Clock, SystemClock
from dledger.errors import ConfigError
from dledger.remoting.server import Connection, RemotingServer, ServerConfig
from nameserver.key_value_file import KeyValueFile
from nameserver.processor import NameserverProcessor
from nameserver.route_table import RouteLimits, RouteTable

_EXPIRY_CHECK_S = 5.0


@dataclass(frozen=True, kw_only=True)
class NameserverConfig:
    """One nameserver.

    Attributes:
        host: Address to bind. Loopback unless told otherwise.
        port: Port to bind; 0 takes a free one.
        expiry_seconds: A broker that has been silent for this long is removed.
        data_directory: Where key-value configuration is kept; `None`: in memory only.
    """

    host: str = "127.0.0.1"
    port: int = 9876
    expiry_seconds: float = 120.0
    data_directory: Path | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65_535:
            raise ConfigError("port", self.port, "must lie in 0..65535")
        if not 1 <= self.expiry_seconds <= 3600:
            raise ConfigError("expiry_seconds", self.expiry_seconds, "must lie in 1..3600")


class NameserverServer:
    """One nameserver in the running event loop."""

    def __init__(self, config: NameserverConfig, clock: Clock | None = None) -> None:
        """Reads the key-value file, if any.

        Raises:
            ConfigError: The data directory cannot be used.
        """
        self._config = config
        key_values = None
        if config.data_directory is not None:
            try:
                config.data_directory.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                rule = f"cannot be written: {error.strerror or error}"
                value = str(config.data_directory)
                raise ConfigError("data_directory", value, rule) from error
            key_values = KeyValueFile(config.data_directory / "key-values.json")
        self.processor = NameserverProcessor(
            RouteTable(RouteLimits(expiry_ms=int(config.expiry_seconds * 1000))),
            clock or SystemClock(),
            key_values=key_values,
            settings={
                "listenHost": config.host,
                "listenPort": str(config.port),
                "brokerExpirySeconds": f"{config.expiry_seconds:g}",
            },
        )
        self._server = RemotingServer(self.processor, ServerConfig())
        self._expiry: asyncio.Task[None] | None = None

    @property
    def port(self) -> int:
        """The port that was bound."""
        return self._server.port

    @property
    def connections(self) -> list[Connection]:
        """The open connections."""
        return self._server.connections

    async def start(self) -> None:
        """Binds and serves.

        Raises:
            ConfigError: The address cannot be bound.
        """
        await self._server.start(self._config.host, self._config.port)
        self._expiry = asyncio.create_task(self._expire(), name="nameserver expiry")

    async def stop(self, drain_s: float = 1.0) -> None:
        """Answers what is under way, then closes. Safe to call twice."""
        if self._expiry is not None:
            self._expiry.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._expiry
            self._expiry = None
        await self._server.stop(drain_s)

    async def _expire(self) -> None:
        interval = min(_EXPIRY_CHECK_S, self._config.expiry_seconds / 4)
        while True:
            await asyncio.sleep(interval)
            self.processor.expire()
