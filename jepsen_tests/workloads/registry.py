"""Workloads by name: which client processes each needs, and what a run of it is promised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from jepsen_tests.hosts.shell import HarnessError

CHECK_AFTER_S = 2.0


class Stage(Enum):
    """When a client process is told to stop; all of one stage have ended before the next."""

    LOAD = "with the load"
    SETTLE = "when all is healed: it waits for what has to happen by itself"
    DRAIN = "last: when its group was given everything"


@dataclass(frozen=True)
class Workload:
    """One workload.

    Attributes:
        workers: Activity of each client process; each runs on a host of its own.
        rate_max: More operations a second than this are not tried.
        acks_min_per_s: Fewer acknowledged operations prove nothing.
        foreign: Works on a cluster that the harness does not control.
        settings: Of the brokers, beside the harness's own.
        promises: Fields of `Meta`: what such brokers promise beyond what every broker does.
        retry_max: Of the consumer group, see `WorkerPlan`.
        mortal: Activities whose process is killed and started anew during the load.
    """

    name: str
    title: str
    workers: tuple[str, ...]
    queue_count: int = 4
    rate_max: float = 1e9
    acks_min_per_s: float = 50
    foreign: bool = True
    settings: Mapping[str, Any] = field(default_factory=dict)
    promises: Mapping[str, Any] = field(default_factory=dict)
    retry_max: int = -1
    mortal: tuple[str, ...] = ()


WORKLOADS: Mapping[str, Workload] = {
    workload.name: workload
    for workload in (
        Workload("W1", "log: public client and raw wire", ("log-client", "log-wire")),
        Workload("W1-CLIENT", "log: public client", ("log-client", "log-client")),
        Workload("W1-WIRE", "log: raw wire", ("log-wire", "log-wire"), foreign=False),
        Workload(
            "W2",
            "ordered keys: sent one after the other, consumed in order",
            ("ordered-send", "ordered-consume"),
            rate_max=1600,
        ),
        Workload(
            "W2-GROUP",
            "ordered keys: consumed in order by members that come and go",
            ("ordered-send", "ordered-group"),
            rate_max=1600,
        ),
        Workload(
            "W3",
            "group consumption: members come, go and are killed; offsets are committed",
            ("log-client", "group-consume", "group-member", "offsets"),
            rate_max=2400,
            mortal=("group-member",),
        ),
        Workload(
            "W4",
            "transactions: committed, rolled back, or left for the producer to be asked",
            ("transact", "group-consume"),
            rate_max=500,
            acks_min_per_s=20,
            settings={
                "transactions": {"immunity_s": CHECK_AFTER_S, "check_interval_s": CHECK_AFTER_S}
            },
            promises={"check_back_after_ms": int(CHECK_AFTER_S * 1000)},
        ),
        Workload(
            "W5",
            "delayed messages: by level, by time, and recalled",
            ("delayed-send", "group-consume"),
            rate_max=400,
            acks_min_per_s=10,
        ),
        Workload(
            "W6",
            "consumers that fail at random: retries and dead letters",
            ("log-client", "retry-consume"),
            rate_max=300,
            acks_min_per_s=10,
            settings={
                "timers": {"delay_levels": "1s 1s 1s 2s 2s 3s 3s 4s 4s 5s 5s 6s 6s 7s 7s 8s"}
            },
            retry_max=2,
        ),
        Workload(
            "W7",
            "small objects: locks on queues, topics' configuration",
            ("locks", "topic-config"),
            rate_max=300,
            acks_min_per_s=10,
        ),
    )
}

_STAGES: Mapping[str, Stage] = {
    "transact": Stage.SETTLE,
    "delayed-send": Stage.SETTLE,
    "group-consume": Stage.DRAIN,
    "ordered-consume": Stage.DRAIN,
    "ordered-group": Stage.DRAIN,
    "retry-consume": Stage.DRAIN,
}


def stage_of(kind: str) -> Stage:
    """Returns when the processes of an activity end."""
    return _STAGES.get(kind, Stage.LOAD)


def find_workload(name: str) -> Workload:
    """Returns a workload.

    Raises:
        HarnessError: There is none of this name.
    """
    found = WORKLOADS.get(name.upper())
    if found is None:
        raise HarnessError(f"no workload {name.upper()}; there are {', '.join(WORKLOADS)}")
    return found
