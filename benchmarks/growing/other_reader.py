"""A reader in a process of its own, so that it takes nothing from the producer but the cluster."""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Self

from dledger.bench.reading import pull_raw
from dledger.client.admin import AsyncAdmin
from dledger.model import MessageQueue
from dledger.remoting.client import RemotingClient

NEWEST_COUNT = 20_000  # what of each queue a reader of the newest messages reads over and over
OLDEST_SHARE = 0.5  # a reader of the oldest begins anew when it has read so much
START_S = 60.0


class OtherReader:
    """Pulls messages at one end of a topic until told to stop."""

    def __init__(self, nameserver: str, topic: str, where: str, mb_per_s: float | None) -> None:
        """Says what to read.

        Args:
            nameserver: Of the cluster.
            topic: It must hold messages.
            where: `head`: the oldest; `tail`: the newest.
            mb_per_s: At most so much; None: as fast as possible, a pull of each queue under way.
        """
        # Not forked: the parent has threads and loops.
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        arguments = (theirs, nameserver, topic, where, mb_per_s)
        self._process = context.Process(target=_main, args=arguments, daemon=True)

    def __enter__(self) -> Self:
        """Starts it; returns when it reads."""
        self._process.start()
        if not self._pipe.poll(START_S):
            self._process.kill()
            raise TimeoutError("the other reader does not start")
        self._pipe.recv()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Ends it."""
        self._process.kill()
        self._process.join()

    def stop(self) -> float:
        """Stops it; returns the MB/s it has read since it began."""
        self._pipe.send(None)
        return float(self._pipe.recv())


def _main(
    pipe: Connection, nameserver: str, topic: str, where: str, mb_per_s: float | None
) -> None:
    try:
        import uvloop
    except ImportError:
        run = asyncio.run
    else:
        run = uvloop.run
    run(_read(pipe, nameserver, topic, where, mb_per_s))


async def _read(
    pipe: Connection, nameserver: str, topic: str, where: str, mb_per_s: float | None
) -> None:
    async with AsyncAdmin(nameserver=nameserver) as admin:
        brokers = (await admin.cluster()).brokers
        ranges = {}
        for queue in await admin.queues(topic):
            low, high = await admin.offset_min(queue), await admin.offset_max(queue)
            if where == "head":
                ranges[queue] = low, max(low + 1, low + int((high - low) * OLDEST_SHARE))
            else:
                ranges[queue] = max(low, high - NEWEST_COUNT), high
    client = RemotingClient()
    read = 0
    begun = time.perf_counter()

    async def follow(queue: MessageQueue, low: int, high: int) -> None:
        nonlocal read
        address, offset = brokers[queue.broker_name].addresses[0], low
        while True:
            if mb_per_s is not None:
                # What has been read is due at this rate; sleep until it is.
                ahead = read / 1e6 / mb_per_s - (time.perf_counter() - begun)
                if ahead > 0:
                    await asyncio.sleep(ahead)
            size, next_offset = await pull_raw(client, address, queue, offset)
            read += size
            # At the end of the topic or of what is to be read: from the start.
            offset = next_offset if offset < next_offset < high else low

    tasks = [asyncio.create_task(follow(queue, *bounds)) for queue, bounds in ranges.items()]
    stopping = asyncio.get_running_loop().run_in_executor(None, pipe.recv)
    pipe.send(None)
    await asyncio.wait({stopping, *tasks}, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        if task.done():
            task.result()
        task.cancel()
    pipe.send(read / 1e6 / (time.perf_counter() - begun))
    await client.close()
