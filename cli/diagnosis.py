"""What is wrong with a cluster, judged from what its processes say. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

ENTRIES_BEHIND_MAX = 10_000
CLOCK_APART_MAX_MS = 500
DISK_USED_MAX = 0.85


class Level(IntEnum):
    """How bad a finding is."""

    GOOD = 0
    WARNING = 1  # it works, but look at it
    PROBLEM = 2  # something does not work, or would not survive the next failure


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    check: str
    level: Level
    text: str


@dataclass(frozen=True, kw_only=True)
class Observation:
    """One replica as it was asked.

    Attributes:
        group: Broker name.
        address: Where it was asked.
        table: What it said of itself; None: it did not answer.
        asked_ms: Our wall clock halfway between question and answer.
        round_trip_ms: How long that took: the clock is known no better.
    """

    group: str
    address: str
    table: Mapping[str, str] | None
    asked_ms: float = 0.0
    round_trip_ms: float = 0.0

    @property
    def name(self) -> str:
        """The replica's id, or its address while that is not known."""
        return (self.table or {}).get("replicaId") or self.address

    def number(self, key: str) -> int:
        """Returns a number of the table, 0 if there is none."""
        try:
            return int((self.table or {}).get(key) or 0)
        except ValueError:
            return 0

    @property
    def serves(self) -> bool:
        """Whether it leads and takes writes."""
        return (self.table or {}).get("raftServing") == "true"


Routes = Mapping[str, Mapping[int, str]]  # addresses by broker name and id
Members = Mapping[str, Mapping[str, str]]  # expressions by client id and topic


def diagnose(
    nameservers: Mapping[str, Routes | None],
    replicas: Sequence[Observation],
    differences: Mapping[str, Members],
) -> list[Finding]:
    """Returns findings, at least one for each check.

    Args:
        nameservers: What each knows; None: it does not answer.
        replicas: All that are known of.
        differences: Consumer groups whose members differ.
    """
    findings = [*_nameservers(nameservers)]
    for group in sorted({each.group for each in replicas}):
        members = [each for each in replicas if each.group == group]
        findings += [*_quorum(group, members), *_lag(group, members), *_disks(group, members)]
        findings += _routes(group, members, nameservers)
    findings += [*_clocks(replicas), *_versions(replicas), *_subscriptions(differences)]
    if not replicas:
        text = "no nameserver knows a broker"
        findings.append(Finding(check="brokers", level=Level.PROBLEM, text=text))
    return findings


def worst(findings: Iterable[Finding]) -> Level:
    """Returns how bad the worst finding is."""
    return max((finding.level for finding in findings), default=Level.GOOD)


def _nameservers(nameservers: Mapping[str, Routes | None]) -> Iterable[Finding]:
    for address, routes in nameservers.items():
        if routes is None:
            level, text = Level.PROBLEM, f"{address} does not answer"
        else:
            level, text = (
                Level.GOOD,
                f"{address} answers; broker groups: {', '.join(sorted(routes)) or 'none'}",
            )
        yield Finding(check="nameserver", level=level, text=text)


def _quorum(group: str, members: Sequence[Observation]) -> Iterable[Finding]:
    leaders = [each for each in members if each.serves]
    leader = max(leaders, key=lambda each: each.number("raftTerm"), default=None)
    silent = [each.name for each in members if each.table is None]
    learners = _learners(leader)
    voters = [each for each in members if each.address not in learners]
    answering = sum(each.table is not None for each in voters)
    needed = len(voters) // 2 + 1
    text = f"{group}: {answering} of {len(voters)} replicas answer"
    if len(voters) < len(members):
        text += f", {len(members) - len(voters)} more are catching up and do not count yet"
    if silent:
        text += f", silent: {', '.join(silent)}"
    if answering < needed:
        level = Level.PROBLEM
    elif answering == len(voters):
        level = Level.WARNING if silent else Level.GOOD
    else:
        # One more failure, and it might be one too many.
        level = Level.PROBLEM if answering == needed else Level.WARNING
    yield Finding(check="quorum", level=level, text=text)
    if leader is None:
        text = f"{group}: nobody serves as leader; writes fail"
        yield Finding(check="leader", level=Level.PROBLEM, text=text)
    else:
        text = f"{group}: {leader.name} leads in term {leader.number('raftTerm')}"
        yield Finding(check="leader", level=Level.GOOD, text=text)


def _learners(leader: Observation | None) -> set[str]:
    """Returns the addresses of a group's members that do not vote, as its leader says."""
    table = {} if leader is None else leader.table or {}
    names = set(table.get("raftLearners", "").split(";")) - {""}
    places = (part.partition("=") for part in table.get("raftMembers", "").split(";"))
    return {address for name, _, address in places if name in names}


def _lag(group: str, members: Sequence[Observation]) -> Iterable[Finding]:
    answering = [each for each in members if each.table is not None]
    newest = max((each.number("commitIndex") for each in answering), default=0)
    behind = {each.name: newest - each.number("appliedIndex") for each in answering}
    late = {name: count for name, count in behind.items() if count > ENTRIES_BEHIND_MAX}
    if late:
        text = f"{group}: " + ", ".join(f"{name} is {n} entries behind" for name, n in late.items())
        yield Finding(check="lag", level=Level.WARNING, text=text)
    else:
        text = f"{group}: at most {max(behind.values(), default=0)} entries behind"
        yield Finding(check="lag", level=Level.GOOD, text=text)


def _disks(group: str, members: Sequence[Observation]) -> Iterable[Finding]:
    fullest = 0.0
    level, text = Level.GOOD, ""
    for each in members:
        table = each.table or {}
        used = _ratio(table.get("commitLogDiskRatio"))
        fullest = max(fullest, used)
        if table.get("diskFull") == "true":
            level, text = Level.PROBLEM, f"{group}: the disk of {each.name} is full; writes fail"
            break
        if used > DISK_USED_MAX:
            level = Level.WARNING
            text = f"{group}: the log of {each.name} takes {used:.0%} of its disk"
    text = text or f"{group}: logs take at most {fullest:.1%} of their disks"
    yield Finding(check="disk", level=level, text=text)


def _routes(
    group: str, members: Sequence[Observation], nameservers: Mapping[str, Routes | None]
) -> Iterable[Finding]:
    serving = [each for each in members if each.serves]
    leader = max(serving, key=lambda each: each.number("raftTerm"), default=None)
    if leader is None:
        return
    for address, routes in nameservers.items():
        if routes is None:
            continue
        known = routes.get(group, {})
        missing = [e.name for e in members if e.table and e.address not in known.values()]
        if known.get(0) != leader.address:
            text = f"{group}: {address} takes {known.get(0) or 'nobody'} for the leader, "
            text += f"it is {leader.address}"
            yield Finding(check="route", level=Level.PROBLEM, text=text)
        elif missing:
            text = f"{group}: {address} does not know {', '.join(missing)}"
            yield Finding(check="route", level=Level.WARNING, text=text)
        else:
            text = f"{group}: {address} knows leader and followers"
            yield Finding(check="route", level=Level.GOOD, text=text)


def _clocks(replicas: Sequence[Observation]) -> Iterable[Finding]:
    known = {
        each.name: (each.number("wallClockMs") - each.asked_ms, each.round_trip_ms)
        for each in replicas
        if each.number("wallClockMs")
    }
    if not known:
        return
    first, last = (f(known, key=lambda name: known[name][0]) for f in (min, max))
    apart_ms = known[last][0] - known[first][0]
    doubt_ms = (known[last][1] + known[first][1]) / 2
    level = Level.WARNING if apart_ms - doubt_ms > CLOCK_APART_MAX_MS else Level.GOOD
    text = f"clocks are {apart_ms:.0f} ms apart (known to {doubt_ms:.0f} ms)"
    if level is Level.WARNING:
        text += f": {first} is behind {last}; delayed messages may be late after a fail-over"
    yield Finding(check="clocks", level=level, text=text)


def _versions(replicas: Sequence[Observation]) -> Iterable[Finding]:
    versions: dict[str, list[str]] = {}
    for each in replicas:
        if each.table is not None:
            found = each.table.get("programVersion") or "unknown"
            versions.setdefault(found, []).append(each.name)
    if len(versions) > 1:
        shown = "; ".join(f"{v}: {', '.join(names)}" for v, names in sorted(versions.items()))
        yield Finding(check="versions", level=Level.WARNING, text=f"versions differ: {shown}")
    elif versions:
        text = f"all run version {next(iter(versions))}"
        yield Finding(check="versions", level=Level.GOOD, text=text)


def _subscriptions(differences: Mapping[str, Members]) -> Iterable[Finding]:
    for group, members in sorted(differences.items()):
        shown = "; ".join(
            f"{client}: {', '.join(f'{topic} {text}' for topic, text in sorted(topics.items()))}"
            for client, topics in _kinds(members)
        )
        text = f"members of {group} subscribe to different things: {shown}"
        yield Finding(check="subscriptions", level=Level.PROBLEM, text=text)
    if not differences:
        text = "the members of every consumer group agree"
        yield Finding(check="subscriptions", level=Level.GOOD, text=text)


def _kinds(members: Members) -> list[tuple[str, Mapping[str, str]]]:
    """Returns one member of each kind."""
    seen: dict[tuple[tuple[str, str], ...], tuple[str, Mapping[str, str]]] = {}
    for client, topics in sorted(members.items()):
        seen.setdefault(tuple(sorted(topics.items())), (client, topics))
    return list(seen.values())


def _ratio(text: str | None) -> float:
    try:
        return float(text or 0)
    except ValueError:
        return 0.0
