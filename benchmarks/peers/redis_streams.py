"""Redis: a stream, a primary and two replicas, three sentinels, through redis-py."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path

import redis.asyncio as redis
from redis.asyncio.sentinel import Sentinel
from redis.exceptions import RedisError

from benchmarks.peers.peer import Done, Peer, Send
from benchmarks.peers.servers import READY_S, Servers
from cli.cluster import free_port_base

NAME = "peers"
GROUP = "readers"
READ = 500
WAIT_MS = 5000
SENTINEL = """port {port}
bind 127.0.0.1
dir {directory}
sentinel monitor peers 127.0.0.1 {primary} 2
sentinel down-after-milliseconds peers 1000
sentinel failover-timeout peers 3000
sentinel parallel-syncs peers 2
"""


class NotReplicatedError(Exception):
    """WAIT counted no replica in time: the message may be lost with the primary."""


class RedisStreams(Peer):
    """XADD, then WAIT 1. Commands of a window travel in one pipeline, as redis-py does that."""

    title = "Redis stream, WAIT 1, AOF always"
    consensus = "none"
    synced = "the primary's"
    client = "redis-py, hiredis"

    def missing(self) -> str | None:
        return None if shutil.which("redis-server") else "no redis-server installed"

    def version(self) -> str:
        command = ["redis-server", "--version"]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return text.partition("v=")[2].split()[0]

    def start(self, directory: Path) -> None:
        self._servers = Servers(directory)
        self._base = free_port_base(6)
        self._primary = 0
        self._killed: int | None = None
        for number in range(3):
            self._start(number)
        for number in range(3):
            self._servers.wait_port(f"redis{number}", self._base + number)
        for number in range(3):
            self._start_sentinel(number)
        for number in range(3):
            self._servers.wait_port(f"sentinel{number}", self._base + 3 + number)
        self._wait_whole()

    def _start(self, number: int) -> None:
        directory = self._servers.directory / f"redis{number}"
        directory.mkdir(exist_ok=True)
        command = ["redis-server", "--bind", "127.0.0.1", "--port", str(self._base + number)]
        command += ["--dir", str(directory), "--save", "", "--appendonly", "yes"]
        command += ["--appendfsync", "always", "--repl-diskless-sync-delay", "0"]
        if number != self._primary:
            command += ["--replicaof", f"127.0.0.1 {self._base + self._primary}"]
        self._servers.start(f"redis{number}", command)

    def _start_sentinel(self, number: int) -> None:
        directory = self._servers.directory / f"sentinel{number}"
        directory.mkdir()
        port = self._base + 3 + number
        text = SENTINEL.format(port=port, directory=directory, primary=self._base)
        (directory / "sentinel.conf").write_text(text)
        command = ["redis-server", str(directory / "sentinel.conf"), "--sentinel"]
        self._servers.start(f"sentinel{number}", command)

    def _wait_whole(self) -> None:
        """Waits until the sentinels know each other and the primary, and both replicas follow."""

        async def whole() -> bool:
            async with redis.Redis(port=self._base + 3) as watcher:
                known = await watcher.sentinel_master(NAME)
            self._primary = known["port"] - self._base
            async with self._client(self._primary) as client:
                info = await client.info("replication")
            states = [info.get(f"slave{place}", {}).get("state") for place in range(2)]
            return (
                info["role"] == "master"
                and states == ["online", "online"]
                and known["num-slaves"] >= 2
                and known["num-other-sentinels"] == 2
            )

        def is_whole() -> bool:
            try:
                return asyncio.run(whole())
            except RedisError:  # somebody is not there yet
                return False

        self._servers.wait(f"redis{self._primary}", is_whole)

    def stop(self) -> None:
        self._servers.stop()

    def nodes(self) -> dict[str, int]:
        return {f"redis{number}": self._servers.pid(f"redis{number}") for number in range(3)}

    def _client(self, number: int) -> redis.Redis:
        return redis.Redis(host="127.0.0.1", port=self._base + number)

    async def create(self, topic: str) -> None:
        """A stream comes into being with its first message; its group reads from there."""
        async with self._client(self._primary) as client:
            await client.xgroup_create(topic, GROUP, id="0", mkstream=True)

    @contextlib.asynccontextmanager
    async def publisher(self, topic: str, *, killing: bool = False) -> AsyncIterator[Send]:
        if killing:
            places = [("127.0.0.1", self._base + 3 + number) for number in range(3)]
            watchers = Sentinel(places, socket_timeout=0.5)
            client = watchers.master_for(NAME, socket_timeout=1.0)
        else:
            client = self._client(self._primary)

        async def send(body: bytes) -> None:
            pipeline = client.pipeline(transaction=False)
            pipeline.xadd(topic, {"b": body})
            pipeline.wait(1, 200 if killing else WAIT_MS)
            if (await pipeline.execute())[1] < 1:
                raise NotReplicatedError

        try:
            yield send
        finally:
            await client.aclose()

    async def publish(self, topic: str, body: bytes, window: int, seconds: float) -> Done:
        """A connection of redis-py has one pipeline under way: the window is its length."""
        sent = 0
        async with self._client(self._primary) as client:
            started = time.perf_counter()
            while time.perf_counter() < started + seconds:
                pipeline = client.pipeline(transaction=False)
                for _ in range(window):
                    pipeline.xadd(topic, {"b": body})
                pipeline.wait(1, WAIT_MS)
                if (await pipeline.execute())[-1] < 1:
                    raise NotReplicatedError
                sent += window
            return Done(sent, time.perf_counter() - started)

    async def consume(self, topic: str, count: int, seconds: float, each: int) -> Done:
        read = 0
        async with self._client(self._primary) as client:
            await client.xgroup_setid(topic, GROUP, id="0")
            started = time.perf_counter()
            while read < count and time.perf_counter() < started + seconds:
                found = await client.xreadgroup(GROUP, "reader", {topic: ">"}, count=READ)
                if not found:
                    break
                entries = [entry for entry, _ in found[0][1]]
                pipeline = client.pipeline(transaction=False)
                for first in range(0, len(entries), each):
                    pipeline.xack(topic, GROUP, *entries[first : first + each])
                await pipeline.execute()
                read += len(entries)
            return Done(read, time.perf_counter() - started)

    async def leader(self, topic: str) -> str:
        return f"redis{self._primary}"

    def kill(self, node: str) -> None:
        self._servers.kill(node)
        self._killed = self._primary

    def revive(self) -> None:
        if self._killed is None:
            return

        async def follow_the_next() -> None:
            async with redis.Redis(port=self._base + 3) as watcher:
                while self._primary == self._killed:
                    self._primary = (await watcher.sentinel_master(NAME))["port"] - self._base
                    await asyncio.sleep(0.05)

        asyncio.run(asyncio.wait_for(follow_the_next(), READY_S))
        self._start(self._killed)
        self._servers.wait_port(f"redis{self._killed}", self._base + self._killed)
        self._killed = None
        self._wait_whole()
