"""NATS JetStream: a stream of three replicas, through nats-py."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import nats
from nats.js.api import AckPolicy, ConsumerConfig, StorageType, StreamConfig

from benchmarks.peers.peer import PLACE, Done, Peer, Send, closing, until_confirmed
from benchmarks.peers.servers import Servers
from cli.cluster import free_port_base

CONFIG = """server_name: n{number}
listen: "127.0.0.1:{port}"
jetstream {{ store_dir: "{directory}/n{number}" {sync} }}
cluster {{ name: peers, listen: "127.0.0.1:{cluster_port}", routes: [{routes}] }}
"""
ATTEMPT_S = 0.25  # nobody answers while there is no leader: ask again soon
READY_S = 60.0
FETCH = 500


class _JetStream(Peer):
    """Three servers; a publish returns with the stream's acknowledgement."""

    consensus = "Raft"
    client = "nats-py"
    sync = ""

    def binary(self) -> str | None:
        raise NotImplementedError

    def missing(self) -> str | None:
        return None if self.binary() else "no such nats-server installed"

    def version(self) -> str:
        command = [str(self.binary()), "--version"]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return text.rpartition("v")[2].strip()

    def start(self, directory: Path) -> None:
        self._servers = Servers(directory)
        self._base = free_port_base(6)
        self._killed: str | None = None
        for number in range(3):
            self._start(number)
        for number in range(3):
            self._servers.wait_port(f"n{number}", self._base + number)
        asyncio.run(asyncio.wait_for(self._first_stream(), READY_S))

    def _start(self, number: int) -> None:
        routes = ", ".join(f'"nats://127.0.0.1:{self._base + 3 + other}"' for other in range(3))
        path = self._servers.directory / f"n{number}.conf"
        text = CONFIG.format(
            number=number,
            port=self._base + number,
            cluster_port=self._base + 3 + number,
            routes=routes,
            directory=self._servers.directory,
            sync=self.sync,
        )
        path.write_text(text)
        self._servers.start(f"n{number}", [str(self.binary()), "-c", str(path)])

    async def _first_stream(self) -> None:
        """A cluster that has just started refuses streams until it has elected its leader."""
        await until_confirmed(lambda body: self.create(body.decode()), b"first")

    def stop(self) -> None:
        self._servers.stop()

    def nodes(self) -> dict[str, int]:
        return {f"n{number}": self._servers.pid(f"n{number}") for number in range(3)}

    async def _connect(self, *numbers: int) -> nats.NATS:
        async def quiet(_: Exception) -> None:
            """The harness sees what fails by itself."""

        return await nats.connect(
            [f"nats://127.0.0.1:{self._base + number}" for number in numbers or range(3)],
            max_reconnect_attempts=-1,
            reconnect_time_wait=0.02,
            dont_randomize=True,
            error_cb=quiet,
        )

    async def _leader(self, topic: str) -> int:
        connection = await self._connect()
        async with closing(connection):
            while True:
                with contextlib.suppress(nats.errors.Error):
                    info = await connection.jetstream().stream_info(topic)
                    if info.cluster is not None and info.cluster.leader:
                        return int(info.cluster.leader[1:])
                await asyncio.sleep(0.05)

    async def create(self, topic: str) -> None:
        connection = await self._connect()
        async with closing(connection):
            config = StreamConfig(
                name=topic, subjects=[topic], num_replicas=3, storage=StorageType.FILE
            )
            await connection.jetstream().add_stream(config)

    @contextlib.asynccontextmanager
    async def publisher(self, topic: str, *, killing: bool = False) -> AsyncIterator[Send]:
        leader = await self._leader(topic)
        connection = await self._connect((leader + 1) % 3 if killing else leader)
        async with closing(connection):
            stream = connection.jetstream(publish_async_max_pending=10_000)

            async def send(body: bytes) -> None:
                await (await stream.publish_async(topic, body))

            async def send_to_whom_it_may_concern(body: bytes) -> None:
                await stream.publish(topic, body, timeout=ATTEMPT_S)

            yield send_to_whom_it_may_concern if killing else send

    async def consume(self, topic: str, count: int, seconds: float, each: int) -> Done:
        connection = await self._connect(await self._leader(topic))
        async with closing(connection):
            policy = AckPolicy.EXPLICIT if each == 1 else AckPolicy.ALL
            durable = f"c{uuid.uuid4().hex[:8]}"
            config = ConsumerConfig(ack_policy=policy, max_ack_pending=10_000)
            subscription = await connection.jetstream().pull_subscribe(
                topic, durable=durable, config=config
            )
            read = 0
            started = time.perf_counter()
            while read < count and time.perf_counter() < started + seconds:
                messages = await subscription.fetch(FETCH, timeout=5)
                for message in messages:
                    read += 1
                    if read % each == 0:
                        await message.ack()
            return Done(read, time.perf_counter() - started)

    async def leader(self, topic: str) -> str:
        return f"n{await self._leader(topic)}"

    def kill(self, node: str) -> None:
        self._servers.kill(node)
        self._killed = node

    def revive(self) -> None:
        if self._killed is not None:
            number = int(self._killed[1:])
            self._start(number)
            self._servers.wait_port(self._killed, self._base + number)
            self._killed = None
            asyncio.run(asyncio.wait_for(self._wait_whole(), READY_S))

    async def _wait_whole(self) -> None:
        """Waits until every stream has a leader and followers that are up to date."""
        connection = await self._connect()
        async with closing(connection):
            manager = connection.jsm()
            while True:
                with contextlib.suppress(nats.errors.Error):
                    clusters = [info.cluster for info in await manager.streams_info()]
                    if all(
                        cluster is not None
                        and cluster.leader
                        and all(peer.current for peer in cluster.replicas or [])
                        for cluster in clusters
                    ):
                        return
                await asyncio.sleep(0.1)


class NatsDebian(_JetStream):
    """The server of the distribution, which cannot sync before it acknowledges."""

    title = "NATS JetStream R3 of Debian, default"
    synced = "none (every 2 minutes)"

    def binary(self) -> str | None:
        return shutil.which("nats-server", path="/usr/bin:/usr/sbin")


class NatsSynced(_JetStream):
    """A newer server, told to sync every write."""

    title = "NATS JetStream R3, sync always"
    synced = "a majority's"
    sync = ", sync_interval: always"

    def binary(self) -> str | None:
        path = PLACE / "bin" / "nats-server"
        return str(path) if path.exists() else None
