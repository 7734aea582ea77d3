"""Workloads by name: which client processes each needs, and those that cannot run yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from jepsen_tests.hosts.shell import HarnessError


@dataclass(frozen=True)
class Workload:
    """One workload.

    Attributes:
        workers: Activity of each client process; each runs on a host of its own.
        rate_max: More operations a second than this are not tried.
        foreign: Works on a cluster that the harness does not control.
    """

    name: str
    title: str
    workers: tuple[str, ...]
    queue_count: int = 4
    rate_max: float = 1e9
    foreign: bool = True


WORKLOADS: Mapping[str, Workload] = {
    workload.name: workload
    for workload in (
        Workload("W1", "log: public client and raw wire", ("log-client", "log-wire")),
        Workload("W1-CLIENT", "log: public client", ("log-client", "log-client")),
        Workload("W1-WIRE", "log: raw wire", ("log-wire", "log-wire"), foreign=False),
        Workload(
            "W2",
            "ordered keys: sent one after the other, consumed by one member",
            ("ordered-send", "ordered-consume"),
            rate_max=1600,
        ),
        Workload(
            "W3",
            "group consumption: members come and go, offsets are committed",
            ("log-client", "group-consume"),
            rate_max=2400,
        ),
    )
}

# Activities that end only when the group was given everything, after the load.
DRAINING = frozenset({"group-consume", "ordered-consume"})

NOT_YET: Mapping[str, str] = {
    "W4": "needs transactions in the broker",
    "W5": "needs delayed messages in the broker",
    "W6": "needs retry and dead-letter queues in the broker",
    "W7": "needs queue locks and compare-and-set in the broker",
}


def find_workload(name: str) -> Workload | None:
    """Returns a workload; `None` for one that is known but cannot run yet.

    Raises:
        HarnessError: There is none of this name.
    """
    name = name.upper()
    if name in NOT_YET:
        return None
    found = WORKLOADS.get(name)
    if found is None:
        known = ", ".join([*WORKLOADS, *NOT_YET])
        raise HarnessError(f"no workload {name}; there are {known}")
    return found
