"""Peers that speak RocketMQ's protocol: dledger and Apache RocketMQ, with the same clients."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import re
import shutil
import statistics
import time
from collections.abc import AsyncIterator
from pathlib import Path

from benchmarks import single
from benchmarks.peers.peer import PLACE, Done, Peer, Send, Until
from benchmarks.peers.servers import Servers
from dledger import (
    AsyncAdmin,
    AsyncProducer,
    AsyncPullConsumer,
    AsyncPushConsumer,
    ConsumeFrom,
    Message,
    ProducerConfig,
    PullConsumerConfig,
    ReceivedMessage,
)
from dledger.model import MessageQueue

QUEUES = 4
JARS = max(PLACE.glob("rocketmq-*[0-9]"), default=None)  # what setup.sh has put there
OPENED = ("java.base/sun.nio.ch", "java.base/java.nio", "java.base/jdk.internal.ref")
JAVA_THREADS = 64  # the benchmark client's own default
WARM_UP_S = 3.0  # of a JVM that has just started
WINDOW = 1000
PULL = 500  # as many at a time as the other peers' consumers get
_RATE = re.compile(r"Send TPS: (\d+)")


def java(heap: str, *more: str) -> list[str]:
    """Returns how a JVM with Apache RocketMQ's classes begins."""
    command = ["java", f"-Xms{heap}", f"-Xmx{heap}", *more]
    command += [f"--add-opens={package}=ALL-UNNAMED" for package in OPENED]
    command += [f"--add-exports={package}=ALL-UNNAMED" for package in OPENED]
    return [*command, "-cp", f"{JARS}/*"]


def no_java() -> str | None:
    """Returns what is missing to run Apache RocketMQ, if anything is."""
    if shutil.which("java") is None:
        return "no java installed"
    return None if JARS else "no Apache RocketMQ in build/peers (no mvn?)"


class RemotingPeer(Peer):
    """A cluster behind a nameserver, used through dledger's client."""

    client = "dledger, automatic batches"

    @property
    def nameserver(self) -> str:
        """Where clients begin."""
        raise NotImplementedError

    async def create(self, topic: str) -> None:
        async with AsyncAdmin(nameserver=self.nameserver) as admin:
            await admin.create_topic(topic, queue_count=QUEUES)

    @contextlib.asynccontextmanager
    async def publisher(self, topic: str, *, killing: bool = False) -> AsyncIterator[Send]:
        config = ProducerConfig(in_flight_max=WINDOW)
        async with AsyncProducer("peers", nameserver=self.nameserver, config=config) as producer:

            async def send(body: bytes) -> None:
                await producer.send(Message(topic, body))

            yield send

    async def consume(self, topic: str, count: int, seconds: float, each: int) -> Done:
        """One by one to a handler, or pull by pull.

        A push consumer counts each message as done when its handler returns, and commits that every
        few seconds. After a pull its offset, which stands for all before it, is committed while
        others follow, one commit of a queue at a time; the last is waited for.
        """
        if each == 1:
            return await self._handle(topic, count, seconds)
        read = 0
        config = PullConsumerConfig(pull_count_max=PULL, pull_bytes_max=2 * 1024 * 1024)
        group = f"pullers-{topic}"
        async with AsyncPullConsumer(group, nameserver=self.nameserver, config=config) as consumer:
            queues = await consumer.queues(topic)
            for queue in queues:
                await consumer.seek_to_begin(queue)
            started = time.perf_counter()
            end = started + seconds

            async def drain(queue: MessageQueue) -> None:
                nonlocal read
                committing: asyncio.Task[object] | None = None
                while read < count and time.perf_counter() < end:
                    messages = await consumer.pull(queue, timeout_s=0)
                    if not messages:
                        break
                    read += len(messages)
                    if committing is None or committing.done():
                        offset = messages[-1].queue_offset + 1
                        committing = asyncio.create_task(consumer.commit(queue, offset))
                if committing is not None:
                    await committing
                await consumer.commit(queue, await consumer.position(queue))

            async with asyncio.TaskGroup() as tasks:
                for queue in queues:
                    tasks.create_task(drain(queue))
            return Done(read, time.perf_counter() - started)

    async def _handle(self, topic: str, count: int, seconds: float) -> Done:
        async with AsyncPushConsumer(
            f"handlers-{topic}",
            subscriptions={topic: "*"},
            nameserver=self.nameserver,
            consume_from=ConsumeFrom.EARLIEST,
        ) as consumer:
            until = Until(count)

            async def handle(_: ReceivedMessage) -> None:
                until.add()

            running = asyncio.create_task(consumer.run(handle))
            try:
                return await until.done(seconds)
            finally:
                consumer.stop()
                await running

    async def one_a_request(self, topic: str, size: int, count: int) -> float:
        """Returns messages per second when each travels in a request of its own."""
        address = await single.leader_of(self.nameserver, topic, QUEUES)
        options = argparse.Namespace(queues=QUEUES, size=size, messages=count, window=WINDOW)
        return (await single.send(address, topic, options))["messages_per_s"]

    def java_client(self, directory: Path, topic: str, size: int, seconds: float) -> float:
        """Returns what Apache RocketMQ's own benchmark producer says it sends per second."""
        servers = Servers(directory)
        main = "org.apache.rocketmq.example.benchmark.Producer"
        command = [*java("512m", f"-Duser.home={directory}"), main, "-n", self.nameserver]
        command += ["-t", topic, "-s", str(size), "-w", str(JAVA_THREADS), "-ri", "1000"]
        servers.start("benchmark", command)
        try:
            servers.wait("benchmark", lambda: any(_rates(servers)))
            time.sleep(WARM_UP_S + seconds)
            rates = _rates(servers)
        finally:
            servers.stop()
        return statistics.median(rates[-max(1, round(seconds)) :])


def _rates(servers: Servers) -> list[float]:
    """Returns what the benchmark client has printed, once a second."""
    return [float(rate) for rate in _RATE.findall(servers.output("benchmark"))]
