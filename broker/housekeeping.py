"""What a broker looks at now and then, each for ever."""

from __future__ import annotations

import asyncio

from broker.context import BrokerContext
from broker.processors.clients import ClientProcessor
from broker.statistics import SAMPLE_S
from dledger.errors import DiskFailureError
from store.files import FileSystem

EXPIRY_SWEEP_S = 10.0


async def watch_disk(context: BrokerContext, fs: FileSystem) -> None:
    """Lets the gate know how much space is free.

    Raises:
        DiskFailureError: The directory cannot be looked at.
    """
    directory = context.config.data_directory
    while True:
        await asyncio.sleep(context.config.timing.disk_check_s)
        try:
            free_bytes = fs.free_bytes(directory)
        except OSError as error:
            raise DiskFailureError(f"{directory}: {error}") from error
        context.gate.observe_disk(free_bytes)


async def expire_clients(clients: ClientProcessor) -> None:
    """Takes out clients that have been silent for too long."""
    while True:
        await asyncio.sleep(EXPIRY_SWEEP_S)
        clients.expire()


async def sample_statistics(context: BrokerContext) -> None:
    """Has the statistics take note of the totals."""
    while True:
        await asyncio.sleep(SAMPLE_S)
        context.statistics.sample(context.clock.monotonic(), context.clock.wall_ms())
