"""The cluster for tests that run in an event loop: the same, without blocking the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dledger.lifetime import AsyncLifetime
from dledger.testing.cluster import READY_TIMEOUT_S, LocalCluster, Partition


class AsyncLocalCluster(AsyncLifetime):
    """`LocalCluster` for asyncio; one task at a time.

    Arguments, results and errors are those of the methods of the same name there. `cluster` is
    that one, for all that does not wait.
    """

    def __init__(
        self,
        replicas: int = 3,
        groups: int | Sequence[int] = 1,
        *,
        directory: str | Path | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """Checks the arguments; starts nothing."""
        self.cluster = LocalCluster(replicas, groups, directory=directory, settings=settings)

    def __repr__(self) -> str:
        return f"<Async{repr(self.cluster)[1:]}"

    async def start(self) -> None:
        """Starts everything and waits until it serves."""
        await asyncio.to_thread(self.cluster.start)

    async def close(self) -> None:
        """Ends everything and deletes the data."""
        await asyncio.to_thread(self.cluster.close)

    @property
    def nameserver(self) -> str:
        """The nameserver's `host:port`, as clients take it."""
        return self.cluster.nameserver

    async def leader(self, group: str | None = None, *, timeout_s: float = READY_TIMEOUT_S) -> str:
        """Returns the replica that leads a group, waiting for it."""
        return await asyncio.to_thread(self.cluster.leader, group, timeout_s=timeout_s)

    async def wait_until_serving(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Waits until every group with a majority has a leader that the nameserver knows."""
        await asyncio.to_thread(self.cluster.wait_until_serving, timeout_s)

    async def kill(self, replica_id: str) -> None:
        """Ends a replica as `kill -9` does."""
        await asyncio.to_thread(self.cluster.kill, replica_id)

    async def kill_leader(self, group: str | None = None) -> str:
        """Kills the leader of a group; returns which replica it was."""
        return await asyncio.to_thread(self.cluster.kill_leader, group)

    async def stop(self, replica_id: str) -> None:
        """Stops a replica in order."""
        await asyncio.to_thread(self.cluster.stop, replica_id)

    async def restart(self, *replica_ids: str) -> list[str]:
        """Starts replicas again, by default all that are down."""
        return await asyncio.to_thread(self.cluster.restart, *replica_ids)

    async def pause(self, replica_id: str) -> None:
        """Stops a replica in its tracks."""
        await asyncio.to_thread(self.cluster.pause, replica_id)

    def resume(self, *replica_ids: str) -> None:
        """Lets paused replicas go on, all by default."""
        self.cluster.resume(*replica_ids)

    def partition(self, *islands: Sequence[str]) -> Partition:
        """Cuts the network between replicas; heals at the end of a `with` block."""
        return self.cluster.partition(*islands)

    def heal(self) -> None:
        """Ends a partition."""
        self.cluster.heal()

    async def mend(self) -> None:
        """Ends every fault and waits until everything serves."""
        await asyncio.to_thread(self.cluster.mend)

    async def create_topic(
        self, name: str, *, queue_count: int = 4, groups: Sequence[str] | None = None
    ) -> None:
        """Creates a topic and waits until it is known."""
        await asyncio.to_thread(
            self.cluster.create_topic, name, queue_count=queue_count, groups=groups
        )

    async def delete_topic(self, name: str) -> None:
        """Deletes a topic with its messages."""
        await asyncio.to_thread(self.cluster.delete_topic, name)

    async def add_group(self, replicas: int = 3) -> str:
        """Adds a broker group to the running cluster; returns its name."""
        return await asyncio.to_thread(self.cluster.add_group, replicas)
