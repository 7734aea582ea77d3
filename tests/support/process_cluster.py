"""Waiting for real clusters, for tests on processes."""

from __future__ import annotations

import time
from collections.abc import Callable

from cli.cluster import LocalCluster
from cli.status import ClusterStatus


def until(condition: Callable[[], bool], timeout_s: float = 30) -> None:
    """Waits for a condition; fails after the deadline."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "condition not met in time"
        time.sleep(0.02)


def whole(status: ClusterStatus) -> bool:
    """All replicas answer, one leads, and all have applied the same."""
    [group] = status.groups
    return group.leader is not None and (
        len({(replica.applied_index, replica.answers) for replica in group.replicas}) == 1
    )


def wait_leader(cluster: LocalCluster, timeout_s: float = 30) -> str:
    """Returns the id of the replica that serves as leader."""
    leader = cluster.wait(lambda status: status.is_serving, timeout_s).groups[0].leader
    assert leader is not None
    return leader


def address_of(cluster: LocalCluster, replica_id: str) -> str:
    """Returns where clients reach a replica."""
    return next(place.address for _, place in cluster.layout.replicas() if place.id == replica_id)


def raft_address_of(cluster: LocalCluster, replica_id: str) -> str:
    """Returns where the peers reach a replica."""
    return next(
        place.raft_address for _, place in cluster.layout.replicas() if place.id == replica_id
    )


def followers(cluster: LocalCluster, leader: str) -> list[str]:
    """Returns the ids of the other replicas."""
    return [place.id for _, place in cluster.layout.replicas() if place.id != leader]
