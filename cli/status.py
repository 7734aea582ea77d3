"""What the processes of a cluster say about themselves, as records."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from cli import probe
from dledger.model import Role

_PROBES_MAX = 16


@dataclass(frozen=True, kw_only=True)
class NameserverStatus:
    """`alive`: it answers."""

    address: str
    alive: bool


@dataclass(frozen=True, kw_only=True)
class ReplicaStatus:
    """One replica. What only itself can tell is `None` when it does not answer.

    Attributes:
        alive: Its process runs or it answers.
        role: `leader`, `follower` or `candidate`.
        member: `voter`, or `learner` while it catches up.
        incarnation: Which life of the replica this is; it grows when it is rebuilt.
        serving: It leads and has applied the first entry of its term: it takes writes.
    """

    id: str
    role: str | None
    address: str
    raft_address: str
    pid: int | None
    alive: bool
    commit_index: int | None = None
    applied_index: int | None = None
    durable_index: int | None = None
    log_bytes: int | None = None
    term: int | None = None
    serving: bool = False
    member: str | None = None
    incarnation: int | None = None

    @property
    def answers(self) -> bool:
        """Whether it told us its role."""
        return self.role is not None


@dataclass(frozen=True, kw_only=True)
class GroupStatus:
    """A broker group; `leader` is the id of the serving replica of the highest term, if any."""

    name: str
    term: int | None
    leader: str | None
    replicas: tuple[ReplicaStatus, ...]

    def replica(self, replica_id: str) -> ReplicaStatus:
        """Returns the status of one replica."""
        return next(replica for replica in self.replicas if replica.id == replica_id)


@dataclass(frozen=True, kw_only=True)
class ClusterStatus:
    """Everything."""

    nameservers: tuple[NameserverStatus, ...]
    groups: tuple[GroupStatus, ...]

    @property
    def is_serving(self) -> bool:
        """Whether every group has a serving leader."""
        return bool(self.groups) and all(group.leader for group in self.groups)

    def to_json(self) -> dict[str, Any]:
        """Returns the documented form of `dledger status --json`."""
        content = asdict(self)
        for group in content["groups"]:
            for replica in group["replicas"]:
                del replica["term"], replica["serving"]
        return content


@dataclass(frozen=True, kw_only=True)
class ReplicaQuestion:
    """A replica to ask, with what is known without asking."""

    group: str
    id: str
    address: str
    raft_address: str
    pid: int | None


def ask_cluster(
    nameservers: Sequence[str], replicas: Sequence[ReplicaQuestion], *, timeout_s: float = 1.0
) -> ClusterStatus:
    """Asks all processes at the same time."""
    with ThreadPoolExecutor(max_workers=_PROBES_MAX) as pool:
        servers = [
            pool.submit(probe.cluster_addresses, address, timeout_s=timeout_s)
            for address in nameservers
        ]
        answers = [pool.submit(ask_replica, question, timeout_s) for question in replicas]
        return ClusterStatus(
            nameservers=tuple(
                NameserverStatus(address=address, alive=future.result() is not None)
                for address, future in zip(nameservers, servers, strict=True)
            ),
            groups=_groups([(q.group, f.result()) for q, f in zip(replicas, answers, strict=True)]),
        )


def ask_replica(question: ReplicaQuestion, timeout_s: float) -> ReplicaStatus:
    """Asks one replica."""
    table = probe.broker_runtime(question.address, timeout_s=timeout_s)
    if table is None:
        return ReplicaStatus(
            id=question.id,
            role=None,
            address=question.address,
            raft_address=question.raft_address,
            pid=question.pid,
            alive=question.pid is not None,
        )
    role = table.get("raftRole", "").lower()
    return ReplicaStatus(
        id=table.get("replicaId") or question.id,
        role=role if role in {member.value for member in Role} else None,
        address=question.address,
        raft_address=table.get("raftAddress") or question.raft_address,
        pid=_number(table.get("pid")) or question.pid,
        alive=True,
        commit_index=_number(table.get("commitIndex")),
        applied_index=_number(table.get("appliedIndex")),
        durable_index=_number(table.get("durableIndex")),
        log_bytes=_number(table.get("logBytes")),
        term=_number(table.get("raftTerm")),
        serving=table.get("raftServing", "").lower() == "true",
        member=table.get("raftMember"),
        incarnation=_number(table.get("raftIncarnation")),
    )


def discover(nameservers: Sequence[str], *, timeout_s: float = 1.0) -> list[ReplicaQuestion]:
    """Returns the replicas that the first answering nameserver knows."""
    for address in nameservers:
        found = probe.cluster_addresses(address, timeout_s=timeout_s)
        if found is not None:
            return [
                ReplicaQuestion(group=name, id=place, address=place, raft_address="", pid=None)
                for name in sorted(found)
                for place in sorted(found[name].values())
            ]
    return []


def _groups(answers: Iterable[tuple[str, ReplicaStatus]]) -> tuple[GroupStatus, ...]:
    by_name: dict[str, list[ReplicaStatus]] = {}
    for name, replica in answers:
        by_name.setdefault(name, []).append(replica)
    return tuple(group_status(name, replicas) for name, replicas in by_name.items())


def group_status(name: str, replicas: Sequence[ReplicaStatus]) -> GroupStatus:
    """Returns a group's status: of several that believe to lead, the one of the highest term."""
    serving = [replica for replica in replicas if replica.serving]
    leader = max(serving, key=_term, default=None)
    return GroupStatus(
        name=name,
        term=max((replica.term for replica in replicas if replica.term is not None), default=None),
        leader=leader.id if leader else None,
        replicas=tuple(replicas),
    )


def _term(replica: ReplicaStatus) -> int:
    return replica.term or 0


def _number(text: str | None) -> int | None:
    try:
        return int(text) if text else None
    except ValueError:
        return None
