"""The address that moves with the leadership: when it is wanted."""

from __future__ import annotations

import asyncio
from typing import Any

from broker.shared_address import SharedAddress
from broker.tasks import Tasks
from dledger.errors import ConfigError
from tests.support.virtual_loop import run_virtual


class Listener:
    closed = False
    sockets = ()

    def is_serving(self) -> bool:
        return not self.closed

    def close(self) -> None:
        self.closed = True


class Server:
    """Another process holds the address until it is free."""

    def __init__(self) -> None:
        self.is_free = False
        self.attempts = 0
        self.listener = Listener()

    async def listen(self, host: str, port: int) -> Any:
        self.attempts += 1
        if not self.is_free:
            raise ConfigError("listen address", f"{host}:{port}", "in use")
        return self.listener


def test_it_is_taken_late_as_long_as_the_term_lasts_and_then_left() -> None:
    async def main() -> None:
        server = Server()
        tasks = Tasks(lambda error: None)
        shared = SharedAddress("127.0.0.1:1", server, tasks)  # type: ignore[arg-type]
        shared.on_serving(1)
        await asyncio.sleep(5.0)  # longer than any attempt to hand the leadership over
        assert server.attempts > 1
        server.is_free = True
        await asyncio.sleep(5.0)
        assert shared.held == "127.0.0.1:1"
        shared.on_stopped_serving()
        assert shared.held == ""
        await asyncio.sleep(0.1)
        assert server.listener.closed
        server.is_free, attempts = False, server.attempts
        shared.on_serving(2)
        await asyncio.sleep(1.0)
        shared.on_stopped_serving()
        await asyncio.sleep(5.0)
        assert server.attempts > attempts
        assert len(tasks) == 0  # nobody tries any more
        await tasks.close()

    run_virtual(main())
