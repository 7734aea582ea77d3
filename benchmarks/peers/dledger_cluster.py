"""dledger itself: the cluster that `dledger up` starts."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

from benchmarks.peers.remoting import RemotingPeer
from cli.cluster import LocalCluster, free_port_base
from cli.layout import ClusterSpec
from cli.status import ClusterStatus

REPLICAS = 3
CAUGHT_UP_S = 30.0


class Dledger(RemotingPeer):
    """Three replicas and a nameserver, with the settings that they have by default."""

    title = "dledger"
    consensus = "Raft"
    synced = "a majority's"

    def missing(self) -> str | None:
        return None

    def version(self) -> str:
        return importlib.metadata.version("dledger-mq")

    def start(self, directory: Path) -> None:
        self._killed: str | None = None
        self._cluster = LocalCluster(directory, ClusterSpec(port_base=free_port_base(8)))
        self._cluster.__enter__()

    def stop(self) -> None:
        self._cluster.stop()

    @property
    def nameserver(self) -> str:
        return self._cluster.nameserver

    def nodes(self) -> dict[str, int]:
        names = [f"broker-a-{number}" for number in range(REPLICAS)]
        return {name: pid for name in names if (pid := self._cluster.pid(name)) is not None}

    async def leader(self, topic: str) -> str:
        status = self._cluster.wait(lambda status: status.is_serving)
        return str(status.groups[0].leader)

    def kill(self, node: str) -> None:
        self._cluster.kill(node)
        self._killed = node

    def revive(self) -> None:
        if self._killed is not None:
            self._cluster.start_one(self._killed)
            self._cluster.wait(_all_caught_up, CAUGHT_UP_S)
            self._killed = None


def _all_caught_up(status: ClusterStatus) -> bool:
    replicas = status.groups[0].replicas
    applied = {replica.applied_index for replica in replicas}
    return all(replica.alive for replica in replicas) and len(applied) == 1
