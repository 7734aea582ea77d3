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
        foreign: Works on a cluster that the harness does not control.
    """

    name: str
    title: str
    workers: tuple[str, ...]
    queue_count: int = 4
    foreign: bool = True


WORKLOADS: Mapping[str, Workload] = {
    workload.name: workload
    for workload in (
        Workload("W1", "log: public client and raw wire", ("log-client", "log-wire")),
        Workload("W1-CLIENT", "log: public client", ("log-client", "log-client")),
        Workload("W1-WIRE", "log: raw wire", ("log-wire", "log-wire"), foreign=False),
    )
}

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
