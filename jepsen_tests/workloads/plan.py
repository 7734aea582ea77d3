"""What one client process shall do: handed over as a JSON file, so that it can run on any host."""

from __future__ import annotations

from pathlib import Path

import msgspec


class WorkerPlan(msgspec.Struct, kw_only=True):
    """One client process.

    Attributes:
        kind: Which activity: a name in `workloads.worker.ACTIVITIES`.
        index: Number of the worker; its processes are numbered from `index * 1_000_000`.
        host: Where it runs, for the report.
        history: File of its own for what it did and saw.
        nameserver: As seen from its host.
        topic: Used by this run only.
        queue_count: Queues of the topic in each broker group.
        group: Consumer group of those who read by hand.
        consumers: Consumer group that shares the queues.
        retry_max: Of that group: failures after which a message is dead; negative: as it is.
        replicas: Client address of each replica as seen from its host, by replica id.
        dial: What to dial in place of which address, where hosts are not real ones.
        seed: Of every choice it makes.
        processes: Sequential processes (appenders and readers) it runs.
        rate: Operations a second that it tries to do, all processes together; 0: as many as go.
        append_share: Share of appends among the operations.
        body_bytes: Size of a message's body.
        timeout_s: After this long an operation ends as `info`.
        plant: A control: a broken part of the client that a run must find; empty for none.
    """

    kind: str
    index: int
    host: str
    history: str
    nameserver: str
    topic: str
    queue_count: int = 4
    group: str = "jepsen-readers"
    consumers: str = "jepsen-group"
    retry_max: int = -1
    replicas: dict[str, str] = {}
    dial: dict[str, str] = {}
    seed: int = 0
    processes: int = 40
    rate: float = 0.0
    append_share: float = 0.6
    body_bytes: int = 64
    timeout_s: float = 1.0
    plant: str = ""


def save_plan(plan: WorkerPlan, path: Path) -> None:
    """Writes a plan."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(plan), indent=2))


def load_plan(path: Path) -> WorkerPlan:
    """Reads a plan."""
    return msgspec.json.decode(path.read_bytes(), type=WorkerPlan)
