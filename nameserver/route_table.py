"""Which broker groups exist, who leads them and which topics they hold: pure, without I/O.

Three rules differ from Apache RocketMQ's nameserver, all because our brokers elect their leader:

* Broker id 0 of a group belongs to the registration with the highest Raft term. A deposed leader
  that is still alive, or comes back, can never take the route again (RocketMQ #1464).
* A group whose leader is gone keeps its last known topics while any replica is registered, so
  that consumers still find the followers during an election.
* Wiping the write permission is remembered per group and laid over what its brokers announce; it
  survives re-registration, fail-over, and that all of the group's replicas are away for a time;
  giving it back restores the announced permissions.

Brokers that announce no term (Apache RocketMQ's own) follow RocketMQ's rules: the last
registration wins unless its state version is lower.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from msgspec.structs import replace

from dledger.codes import Permission
from dledger.errors import FlowControlError, RequestError, TopicNotFoundError
from dledger.model import TopicConfig

LEADER_ID = 0


class StaleRegistrationError(RequestError):
    """A registration for broker id 0 lost against one of a higher (or the same) term."""

    def __init__(self, broker_name: str, term: int, known_term: int, known_address: str) -> None:
        super().__init__(
            f"{broker_name}: registration of term {term} refused; "
            f"{known_address or 'another replica'} registered as leader of term {known_term}"
        )
        self.term = term
        self.known_term = known_term


@dataclass(frozen=True, kw_only=True, slots=True)
class RouteLimits:
    """Bounds of everything that grows in the table.

    Attributes:
        groups_max: Broker groups.
        members_max: Replicas of one group.
        topics_max: Topics of one group.
        expiry_ms: A replica that has been silent for this long is removed.
        expiry_min_ms: Shortest expiry that a broker may ask for.
        expiry_max_ms: Longest expiry that a broker may ask for.
    """

    groups_max: int = 4096
    members_max: int = 64
    topics_max: int = 200_000
    expiry_ms: int = 120_000
    expiry_min_ms: int = 1_000
    expiry_max_ms: int = 3_600_000


@dataclass(frozen=True, kw_only=True, slots=True)
class DataVersion:
    """Version of a broker's topic table; compared for equality only."""

    state_version: int = 0
    timestamp_ms: int = 0
    counter: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Registration:
    """What one broker replica says about itself.

    Attributes:
        broker_id: 0 for the leader, follower number + 1 otherwise.
        term: Raft term in which it took this role; 0 if the broker announces none.
        shared_address: An address that the leader took over from the one before it and that the
            next one will take over; "" if there is none.
        connection_id: Connection on which it arrived; its loss removes the address.
        expiry_ms: Expiry that the broker asks for, or `None`.
    """

    cluster: str
    broker_name: str
    broker_id: int
    address: str
    ha_address: str = ""
    term: int = 0
    shared_address: str = ""
    connection_id: int
    expiry_ms: int | None = None
    topics: Mapping[str, TopicConfig] = field(default_factory=dict)
    data_version: DataVersion = DataVersion()


@dataclass(frozen=True, kw_only=True, slots=True)
class RegisterOutcome:
    """What a registration changed, and the leader as known afterwards ("" if none)."""

    is_new_member: bool
    is_new_leader: bool
    topics_changed: bool
    leader_address: str
    leader_ha_address: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """One registered replica."""

    cluster: str
    broker_name: str
    broker_id: int
    address: str


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupRoute:
    """A broker group as clients see it: `addresses` by broker id, ascending."""

    cluster: str
    broker_name: str
    addresses: Mapping[int, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class TopicRoute:
    """The groups that hold a topic, by broker name, and each group's settings of the topic."""

    groups: tuple[GroupRoute, ...]
    topics: Mapping[str, TopicConfig]


@dataclass(slots=True)
class _Member:
    broker_id: int
    address: str
    ha_address: str
    term: int
    connection_id: int
    seen_ms: int
    expiry_ms: int
    data_version: DataVersion


@dataclass(slots=True)
class _Group:
    cluster: str
    broker_name: str
    members: dict[int, _Member] = field(default_factory=dict)  # by broker id
    topics: dict[str, TopicConfig] = field(default_factory=dict)
    topics_version: tuple[int, DataVersion] | None = None
    leader_term: int = 0  # highest term ever registered.  Invariant: never falls.
    leader_address: str = ""  # who registered with it; stays after the leader is gone
    shared_address: str = ""  # of the newest leader; the next one takes it over
    is_write_wiped: bool = False

    def by_address(self, address: str) -> _Member | None:
        return next((m for m in self.members.values() if m.address == address), None)

    def view(self, *, own_addresses: bool = True) -> GroupRoute:
        addresses = {key: self.members[key].address for key in sorted(self.members)}
        if self.shared_address and addresses and not own_addresses:
            # Also while nobody leads: the next leader will be found there.
            addresses = {LEADER_ID: self.shared_address} | {
                key: address for key, address in addresses.items() if key != LEADER_ID
            }
        return GroupRoute(cluster=self.cluster, broker_name=self.broker_name, addresses=addresses)

    def shown(self, config: TopicConfig) -> TopicConfig:
        if not self.is_write_wiped:
            return config
        return replace(config, permission=config.permission & ~Permission.WRITE)


class RouteTable:
    """Registered broker groups and their topics.

    Takes plain values and `now_ms` of a monotonic clock. One caller at a time.
    """

    def __init__(self, limits: RouteLimits | None = None) -> None:
        self._limits = limits or RouteLimits()
        self._groups: dict[str, _Group] = {}
        self._write_wiped: set[str] = set()  # outlives the groups

    def __repr__(self) -> str:
        members = sum(len(group.members) for group in self._groups.values())
        return f"<RouteTable groups={len(self._groups)} members={members}>"

    # --- brokers --------------------------------------------------------------------------------

    def register(self, registration: Registration, now_ms: int) -> RegisterOutcome:
        """Takes in what a replica announces about itself.

        Raises:
            StaleRegistrationError: Another replica holds broker id 0 with a higher term (or the
                same one), or this address has since announced itself in a higher term. Nothing
                changed.
            FlowControlError: A limit of the table is reached. Nothing changed.
        """
        group = self._groups.get(registration.broker_name)
        self._check_limits(group, registration)
        if group is None:
            group = _Group(cluster=registration.cluster, broker_name=registration.broker_name)
            group.is_write_wiped = registration.broker_name in self._write_wiped
        self._check_terms(group, registration)

        previous = group.by_address(registration.address)
        if previous is not None and previous.broker_id != registration.broker_id:
            del group.members[previous.broker_id]
        replaced = group.members.get(registration.broker_id)
        group.members[registration.broker_id] = self._member(registration, now_ms)
        self._groups[registration.broker_name] = group

        topics_changed = False
        is_new_leader = False
        if registration.broker_id == LEADER_ID:
            is_new_leader = replaced is None or replaced.address != registration.address
            group.cluster = registration.cluster
            group.leader_term = registration.term
            group.leader_address = registration.address
            group.shared_address = registration.shared_address
            topics_changed = self._take_topics(group, registration)
        leader = group.members.get(LEADER_ID)
        return RegisterOutcome(
            is_new_member=previous is None,
            is_new_leader=is_new_leader,
            topics_changed=topics_changed,
            leader_address=leader.address if leader else "",
            leader_ha_address=leader.ha_address if leader else "",
        )

    def unregister(self, broker_name: str, broker_id: int, address: str) -> bool:
        """Removes a replica that says goodbye; returns whether it was registered like that."""
        group = self._groups.get(broker_name)
        member = group.members.get(broker_id) if group else None
        if group is None or member is None or member.address != address:
            return False
        self._remove(group, member)
        return True

    def heartbeat(self, broker_name: str, address: str, connection_id: int, now_ms: int) -> bool:
        """Notes that a replica is alive; returns whether it is registered."""
        group = self._groups.get(broker_name)
        member = group.by_address(address) if group else None
        if member is None:
            return False
        member.seen_ms = now_ms
        member.connection_id = connection_id
        return True

    def connection_lost(self, connection_id: int) -> list[Member]:
        """Removes the replicas whose latest registration came on this connection."""
        return self._remove_where(lambda member: member.connection_id == connection_id)

    def expire(self, now_ms: int) -> list[Member]:
        """Removes the replicas that have been silent for too long."""
        return self._remove_where(lambda member: member.seen_ms + member.expiry_ms <= now_ms)

    def next_deadline_ms(self) -> int | None:
        """Returns when `expire` will next have something to do, or `None`."""
        return min(
            (
                member.seen_ms + member.expiry_ms
                for group in self._groups.values()
                for member in group.members.values()
            ),
            default=None,
        )

    def data_version(self, broker_name: str, address: str) -> DataVersion | None:
        """Returns the version of the topic table that this address last registered."""
        group = self._groups.get(broker_name)
        member = group.by_address(address) if group else None
        return member.data_version if member else None

    # --- routes ---------------------------------------------------------------------------------

    def route(self, topic: str, *, own_addresses: bool = True) -> TopicRoute:
        """Returns where a topic lives.

        Args:
            topic: The topic.
            own_addresses: Leaders' own addresses, for who learns of a new leader at once, rather
                than those that the next leader takes over.

        Raises:
            TopicNotFoundError: No group with a registered replica holds it.
        """
        holders = [group for group in self._sorted() if topic in group.topics]
        if not holders:
            raise TopicNotFoundError(f"No topic route info in name server for the topic: {topic}")
        return TopicRoute(
            groups=tuple(group.view(own_addresses=own_addresses) for group in holders),
            topics={group.broker_name: group.shown(group.topics[topic]) for group in holders},
        )

    def groups(self) -> list[GroupRoute]:
        """Returns all groups by broker name."""
        return [group.view() for group in self._sorted()]

    def group(self, broker_name: str) -> GroupRoute | None:
        """Returns one group, or `None`."""
        group = self._groups.get(broker_name)
        return group.view() if group else None

    def clusters(self) -> dict[str, list[str]]:
        """Returns the broker names of each cluster, both in alphabetical order."""
        found: dict[str, list[str]] = {}
        for group in self._sorted():
            found.setdefault(group.cluster, []).append(group.broker_name)
        return {name: found[name] for name in sorted(found)}

    def topics(self, cluster: str | None = None) -> list[str]:
        """Returns the names of all topics, or of those held in one cluster, alphabetically."""
        names: set[str] = set()
        for group in self._groups.values():
            if cluster is None or group.cluster == cluster:
                names.update(group.topics)
        return sorted(names)

    # --- administration -------------------------------------------------------------------------

    def set_write_wiped(self, broker_name: str, wiped: bool) -> int:
        """Hides (or gives back) the write permission of a group's topics; returns their number."""
        group = self._groups.get(broker_name)
        if not wiped:
            self._write_wiped.discard(broker_name)
        if group is None:
            return 0
        if wiped:
            self._write_wiped.add(broker_name)
        group.is_write_wiped = wiped
        return len(group.topics)

    def remember_wiped(self, broker_names: Iterable[str]) -> None:
        """Takes over the groups whose write permission was wiped in an earlier life."""
        self._write_wiped.update(broker_names)

    @property
    def write_wiped(self) -> frozenset[str]:
        """The groups whose write permission is wiped, whether or not they are registered."""
        return frozenset(self._write_wiped)

    def delete_topic(self, topic: str, cluster: str | None = None) -> bool:
        """Forgets a topic until a broker announces a changed table; returns whether it was known.

        The brokers hold the truth: delete the topic there first.
        """
        found = False
        for group in self._groups.values():
            if cluster is None or group.cluster == cluster:
                found = group.topics.pop(topic, None) is not None or found
        return found

    def put_topic(self, topic: str, configs: Mapping[str, TopicConfig]) -> int:
        """Adds a topic to registered groups by broker name; returns to how many.

        Raises:
            FlowControlError: A group would hold too many topics. Nothing changed.
        """
        known = [(self._groups[name], configs[name]) for name in configs if name in self._groups]
        for group, _ in known:
            if topic not in group.topics and len(group.topics) >= self._limits.topics_max:
                raise FlowControlError(f"topics_max = {self._limits.topics_max} reached")
        for group, config in known:
            group.topics[topic] = config
        return len(known)

    # --- private --------------------------------------------------------------------------------

    def _sorted(self) -> list[_Group]:
        return [self._groups[name] for name in sorted(self._groups)]

    def _member(self, registration: Registration, now_ms: int) -> _Member:
        limits = self._limits
        expiry_ms = registration.expiry_ms
        if expiry_ms is None:
            expiry_ms = limits.expiry_ms
        else:
            expiry_ms = min(max(expiry_ms, limits.expiry_min_ms), limits.expiry_max_ms)
        return _Member(
            broker_id=registration.broker_id,
            address=registration.address,
            ha_address=registration.ha_address,
            term=registration.term,
            connection_id=registration.connection_id,
            seen_ms=now_ms,
            expiry_ms=expiry_ms,
            data_version=registration.data_version,
        )

    def _check_limits(self, group: _Group | None, registration: Registration) -> None:
        limits = self._limits
        if group is None and len(self._groups) >= limits.groups_max:
            raise FlowControlError(f"groups_max = {limits.groups_max} broker groups reached")
        if (
            group is not None
            and registration.broker_id not in group.members
            and len(group.members) >= limits.members_max
        ):
            raise FlowControlError(f"members_max = {limits.members_max} replicas reached")
        if len(registration.topics) > limits.topics_max:
            raise FlowControlError(f"topics_max = {limits.topics_max} topics exceeded")

    def _check_terms(self, group: _Group, registration: Registration) -> None:
        """Refuses what an election has overtaken."""
        same_address = group.leader_address == registration.address
        if registration.broker_id != LEADER_ID:
            # A follower's announcement that was overtaken by its own election must not undo it.
            leader = group.members.get(LEADER_ID)
            if (
                leader is not None
                and leader.address == registration.address
                and registration.term < leader.term
            ):
                raise self._stale(group, registration)
            return
        if registration.term < group.leader_term:
            raise self._stale(group, registration)
        if registration.term > group.leader_term or same_address:
            return
        if registration.term > 0:
            raise self._stale(group, registration)
        leader = group.members.get(LEADER_ID)
        if (
            leader is not None
            and registration.data_version.state_version < leader.data_version.state_version
        ):
            raise self._stale(group, registration)

    def _stale(self, group: _Group, registration: Registration) -> StaleRegistrationError:
        return StaleRegistrationError(
            group.broker_name, registration.term, group.leader_term, group.leader_address
        )

    def _take_topics(self, group: _Group, registration: Registration) -> bool:
        """Replaces a group's topics if term or version changed.

        An unchanged version is not taken again, so that a topic deleted here stays deleted.
        """
        version = (registration.term, registration.data_version)
        if group.topics_version == version:
            return False
        group.topics_version = version
        changed = group.topics != registration.topics
        group.topics = dict(registration.topics)
        return changed

    def _remove_where(self, condition: Callable[[_Member], bool]) -> list[Member]:
        removed: list[Member] = []
        for group in list(self._groups.values()):
            removed.extend(
                self._remove(group, member)
                for member in [m for m in group.members.values() if condition(m)]
            )
        return removed

    def _remove(self, group: _Group, member: _Member) -> Member:
        del group.members[member.broker_id]
        if not group.members:
            # Nobody is left who could serve its topics. The remembered term goes too: whoever
            # comes next is either in a higher one or a group that was set up afresh.
            del self._groups[group.broker_name]
        return Member(
            cluster=group.cluster,
            broker_name=group.broker_name,
            broker_id=member.broker_id,
            address=member.address,
        )


def address_is_valid(address: str) -> bool:
    """Returns whether an address has the form host:port with a usable port."""
    host, separator, port = address.rpartition(":")
    return bool(
        separator and host and port.isascii() and port.isdigit() and 0 < int(port) < 65536
    ) and (len(address) <= 255 and _is_printable(host))


def _is_printable(host: str) -> bool:
    return all(character.isprintable() and not character.isspace() for character in host)
