"""A producer that never pauses, and the check of what it was promised, for tests on processes."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Self

from dledger.client.config import ProducerConfig
from dledger.client.producer import AsyncProducer
from dledger.client.pull_consumer import AsyncPullConsumer
from dledger.errors import DLedgerError
from dledger.message import Message
from dledger.model import MessageQueue
from tests.support.process_cluster import until


class Load:
    """Numbered messages to one queue, in order, from a thread, until told to stop.

    Attributes:
        acknowledged: The number of each message that is stored, and when that was known.
        uncertain: Numbers of which an attempt, or the whole send, had an unknown outcome.
        refused: Numbers that were certainly not stored, with the error.
    """

    def __init__(
        self,
        nameserver: str,
        topic: str = "t",
        *,
        queue_id: int = 0,
        in_flight: int = 200,
        body_bytes: int = 200,
        send_timeout_s: float = 20.0,
    ) -> None:
        self.acknowledged: dict[int, float] = {}
        self.uncertain: set[int] = set()
        self.refused: dict[int, DLedgerError] = {}
        self.sent = 0
        self.queue = MessageQueue(topic, "broker-a", queue_id)
        self._nameserver = nameserver
        self._in_flight = in_flight
        self._padding = b" " + b"x" * body_bytes
        self._config = ProducerConfig(send_timeout_s=send_timeout_s)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._failure: BaseException | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopping.set()
        self._thread.join(60)
        assert not self._thread.is_alive()
        if error is None and self._failure is not None:
            raise self._failure

    def wait_acknowledged(self, more: int, timeout_s: float = 30) -> float:
        """Waits for so many messages sent from now on; returns how long the first one took."""
        began, first = time.monotonic(), self.sent

        def count() -> int:
            return sum(number >= first for number in self.acknowledged.copy())

        until(lambda: self._failure is not None or count() >= more, timeout_s)
        if self._failure is not None:
            raise self._failure
        times = [at for number, at in self.acknowledged.copy().items() if number >= first]
        return min(times) - began

    def longest_gap_s(self) -> float:
        """Returns the longest time without an acknowledgement between two of them."""
        times = sorted(self.acknowledged.values())
        return max(after - before for before, after in itertools.pairwise(times))

    def _run(self) -> None:
        try:
            asyncio.run(self._send_all())
        except BaseException as error:
            self._failure = error

    async def _send_all(self) -> None:
        async with AsyncProducer(
            "load", nameserver=self._nameserver, config=self._config
        ) as producer:
            room = asyncio.Semaphore(self._in_flight)
            tasks: set[asyncio.Task[None]] = set()
            while not self._stopping.is_set():
                await room.acquire()
                number, self.sent = self.sent, self.sent + 1
                body = b"%d" % number + self._padding
                future = producer.send(Message(self.queue.topic, body), queue=self.queue.queue_id)
                task = asyncio.ensure_future(self._settle(number, future, room))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            await asyncio.gather(*tasks)

    async def _settle(self, number: int, future: asyncio.Future, room: asyncio.Semaphore) -> None:
        try:
            result = await future
        except DLedgerError as error:
            if error.definite:
                self.refused[number] = error
                await asyncio.sleep(0.05)  # a refusing cluster is not asked without pause
            else:
                self.uncertain.add(number)
        else:
            self.acknowledged[number] = time.monotonic()
            if result.outcome_unknown_attempts:
                self.uncertain.add(number)
        finally:
            room.release()

    def check(self) -> None:
        """Reads the whole queue back and compares.

        Nothing acknowledged is missing, nothing refused is there, the order is kept, and no message
        is there twice, whatever became of its attempts.
        """
        found = asyncio.run(read_numbers(self._nameserver, self.queue))
        copies = Counter(found)
        missing = self.acknowledged.keys() - copies.keys()
        assert not missing, (len(missing), sorted(missing)[:10])
        there = self.refused.keys() & copies.keys()
        assert not there, (len(there), sorted(there)[:10])
        twice = sorted(number for number, count in copies.items() if count > 1)
        assert not twice, (len(twice), twice[:10])
        assert found == sorted(found)


async def read_numbers(nameserver: str, queue: MessageQueue) -> list[int]:
    """Returns the numbers at the beginning of all bodies of a queue, up to its end as of now."""
    numbers: list[int] = []
    async with AsyncPullConsumer("check", nameserver=nameserver) as consumer:
        end = await consumer.offset_max(queue)
        position = await consumer.offset_min(queue)
        consumer.seek(queue, position)
        while position < end:
            messages = await consumer.pull(queue, count_max=2000, timeout_s=5)
            assert messages, (position, end)
            assert messages[0].queue_offset == position
            numbers += [int(message.body.split(b" ", 1)[0]) for message in messages]
            position = messages[-1].queue_offset + 1
    return numbers


def rss_bytes(pid: int) -> int:
    """Returns the resident memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"no VmRSS of {pid}")


class MemoryWatch:
    """Notes the largest resident memory of a process, from a thread."""

    def __init__(self, pid: int, pause_s: float = 0.1) -> None:
        self.first = rss_bytes(pid)
        self.largest = self.first
        self._pid = pid
        self._pause_s = pause_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(self._pause_s):
            self.largest = max(self.largest, rss_bytes(self._pid))
