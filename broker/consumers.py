"""Which clients belong to which groups, as their heartbeats say. Pure.

Every replica keeps its own registry: clients of RocketMQ send heartbeats to all replicas, so that
a new leader knows the members of a group without asking. Nothing here is replicated or stored.

A member is one connection of one client in one group. Closing one of several connections of a
client removes that connection's memberships only.

Source: RocketMQ `ConsumerManager`, `ConsumerGroupInfo`, `ProducerManager`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from dledger.codes import ResponseCode
from dledger.errors import FlowControlError, InvalidParameterError, RequestError

logger = logging.getLogger(__name__)

# What a member subscribes to: (topic, filter language, expression), sorted.
Wanted = tuple[tuple[str, str, str], ...]

GROUPS_PER_HEARTBEAT_MAX = 1024
TOPICS_PER_GROUP_MAX = 4096
# The attribute of a group that says what happens when members subscribe to different things.
GUARD = "subscription.guard"
WARN, REFUSE = "warn", "refuse"


class Subscription(Protocol):
    """What a consumer group wants of one topic; `remoting.bodies.SubscriptionData` is one."""

    @property
    def topic(self) -> str:
        """The topic."""
        ...

    @property
    def version(self) -> int:
        """A higher one replaces a lower one."""
        ...

    @property
    def expression(self) -> str:
        """What passes of it."""
        ...

    @property
    def expression_type(self) -> str:
        """The language of the expression; nothing stands for tags."""
        ...


@dataclass(frozen=True, slots=True)
class ClientIdentity:
    """Who sends a heartbeat.

    Attributes:
        connection_id: Number of the connection, unique in this process.
        client_id: The client's own name, the same on all its connections.
        address: `ip:port` of the connection.
        language: As announced.
        version: Ordinal of the client's protocol version.
    """

    connection_id: int
    client_id: str
    address: str
    language: str
    version: int


@dataclass(slots=True)
class Member:
    """One connection of a client in one group."""

    identity: ClientIdentity
    last_seen_ms: int
    wanted: Wanted | None = None  # None: not said yet


@dataclass(slots=True)
class ConsumerGroup:
    """The consumers of one group. Invariant: it has at least one member.

    Attributes:
        consume_type, message_model, consume_from: As the newest heartbeat says.
        members: By connection.
        subscriptions: By topic.
        differs: Whether members subscribe to different things.
    """

    name: str
    consume_type: str
    message_model: str
    consume_from: str
    members: dict[int, Member] = field(default_factory=dict)
    subscriptions: dict[str, Subscription] = field(default_factory=dict)
    differs: bool = False


@dataclass(frozen=True, slots=True)
class RegistryStatistics:
    """What the registry holds."""

    consumer_group_count: int
    producer_group_count: int
    member_count: int


@dataclass(slots=True)
class GuardCounts:
    """Since the start: how often members began to differ, and members that were refused for it."""

    detected: int = 0
    refused: int = 0


class SubscriptionDiffersError(RequestError):
    """A member subscribes to other things than the group, which does not allow that."""

    response_code = ResponseCode.ILLEGAL_OPERATION


class ClientRegistry:
    """Members and subscriptions of all groups."""

    def __init__(self, *, expiry_ms: int, groups_max: int, members_max: int) -> None:
        self._expiry_ms = expiry_ms
        self._groups_max = groups_max
        self._members_max = members_max
        self._consumers: dict[str, ConsumerGroup] = {}
        self._producers: dict[str, dict[int, Member]] = {}
        # Groups by connection, so that a lost connection costs what it holds, not a scan.
        self._consumer_groups_of: dict[int, set[str]] = {}
        self._producer_groups_of: dict[int, set[str]] = {}
        self._member_count = 0
        self.guard_counts = GuardCounts()

    def register_producer(self, identity: ClientIdentity, group: str, now_ms: int) -> None:
        """Notes that a client produces for a group.

        Raises:
            FlowControlError: A limit is reached; the text names it.
        """
        members = self._producers.get(group)
        member = members.get(identity.connection_id) if members else None
        if member is not None:
            member.identity, member.last_seen_ms = identity, now_ms
            return
        self._admit(new_group=members is None)
        self._producers.setdefault(group, {})[identity.connection_id] = Member(identity, now_ms)
        self._producer_groups_of.setdefault(identity.connection_id, set()).add(group)
        self._member_count += 1

    def register_consumer(
        self,
        identity: ClientIdentity,
        group: str,
        *,
        kind: tuple[str, str, str],
        subscriptions: Sequence[Subscription] | None,
        now_ms: int,
        refuse_different: bool = False,
    ) -> bool:
        """Notes that a client consumes for a group.

        Args:
            identity: The client.
            group: The group.
            kind: Consume type, message model and where to begin, as on the wire.
            subscriptions: All topics the client wants; None if the heartbeat leaves them out.
            now_ms: The present, for expiry.
            refuse_different: Whether a client that is new to the group must subscribe to what the
                others do.

        Returns:
            Whether members or subscriptions of the group changed, so that the others must know.

        Raises:
            FlowControlError: A limit is reached; the text names it. Nothing changed.
            InvalidParameterError: Too many topics. Nothing changed.
            SubscriptionDiffersError: As `refuse_different` says. Nothing changed.
        """
        if subscriptions is not None and len(subscriptions) > TOPICS_PER_GROUP_MAX:
            text = f"group {group} subscribes to more than {TOPICS_PER_GROUP_MAX} topics"
            raise InvalidParameterError(text)
        entry = self._consumers.get(group)
        member = entry.members.get(identity.connection_id) if entry else None
        wanted = None if subscriptions is None else wanted_of(subscriptions)
        if refuse_different and entry is not None and member is None and wanted is not None:
            self._refuse_different(entry, identity, wanted)
        if entry is None or member is None:
            self._admit(new_group=entry is None)
        if entry is None:
            entry = self._consumers[group] = ConsumerGroup(group, *kind)
        entry.consume_type, entry.message_model, entry.consume_from = kind
        changed = False
        if member is None:
            entry.members[identity.connection_id] = Member(identity, now_ms, wanted)
            self._consumer_groups_of.setdefault(identity.connection_id, set()).add(group)
            self._member_count += 1
            changed = True
        else:
            changed = member.identity.client_id != identity.client_id
            member.identity, member.last_seen_ms = identity, now_ms
        if subscriptions is not None:
            changed |= _merge(entry.subscriptions, subscriptions)
            if member is None or member.wanted != wanted:
                if member is not None:
                    member.wanted = wanted
                self._compare(entry)
        return changed

    def unregister(
        self,
        connection_id: int,
        client_id: str,
        *,
        producer_group: str | None = None,
        consumer_group: str | None = None,
    ) -> bool:
        """Removes a client that says goodbye from one group of each kind.

        Returns:
            Whether the members of the consumer group changed.
        """
        if producer_group:
            self._remove_producer(connection_id, client_id, producer_group)
        if not consumer_group:
            return False
        return self._remove_consumer(connection_id, client_id, consumer_group)

    def connection_lost(self, connection_id: int) -> list[str]:
        """Removes a connection from all groups.

        Returns:
            The consumer groups whose members changed, sorted.
        """
        for group in sorted(self._producer_groups_of.get(connection_id, ())):
            self._remove_producer(connection_id, None, group)
        groups = sorted(self._consumer_groups_of.get(connection_id, ()))
        return [group for group in groups if self._remove_consumer(connection_id, None, group)]

    def expire(self, now_ms: int) -> list[str]:
        """Removes members whose last heartbeat is too old.

        Returns:
            The consumer groups whose members changed, sorted.
        """
        limit = now_ms - self._expiry_ms
        for group, members in sorted(self._producers.items()):
            for connection_id in _older(members, limit):
                self._remove_producer(connection_id, None, group)
        changed: list[str] = []
        for group, entry in sorted(self._consumers.items()):
            old = _older(entry.members, limit)
            for connection_id in old:
                self._remove_consumer(connection_id, None, group)
            if old:
                changed.append(group)
        return changed

    def consumer_group(self, group: str) -> ConsumerGroup | None:
        """Returns the group if any consumer of it is registered. Read only."""
        return self._consumers.get(group)

    def consumer_groups(self) -> list[str]:
        """Returns the names of all groups with consumers, sorted."""
        return sorted(self._consumers)

    def client_ids(self, group: str) -> list[str]:
        """Returns the ids of the group's consumers, sorted, each once."""
        entry = self._consumers.get(group)
        return sorted({m.identity.client_id for m in entry.members.values()}) if entry else []

    def connection_ids(self, group: str) -> list[int]:
        """Returns the connections of the group's consumers."""
        entry = self._consumers.get(group)
        return list(entry.members) if entry else []

    def consumer_members(self, group: str) -> list[ClientIdentity]:
        """Returns the group's consumers in the order in which they came."""
        entry = self._consumers.get(group)
        return [member.identity for member in entry.members.values()] if entry else []

    def producer_members(self, group: str) -> list[ClientIdentity]:
        """Returns the group's producers in the order in which they came."""
        return [member.identity for member in self._producers.get(group, {}).values()]

    def producer_connection_id(self, client_id: str) -> int | None:
        """Returns the newest connection of a client that is a producer of any group.

        Cost: a look at all producers.
        """
        found = [
            number
            for members in self._producers.values()
            for number, member in members.items()
            if member.identity.client_id == client_id
        ]
        return max(found, default=None)

    def producer_groups(self) -> list[str]:
        """Returns the names of all groups with producers, sorted."""
        return sorted(self._producers)

    def differences(self) -> dict[str, list[tuple[str, dict[str, str]]]]:
        """Returns the groups whose members differ: per member its id, and expressions by topic."""
        return {
            group: sorted(
                (member.identity.client_id, {topic: text for topic, _, text in member.wanted or ()})
                for member in entry.members.values()
            )
            for group, entry in sorted(self._consumers.items())
            if entry.differs
        }

    def subscription(self, group: str, topic: str) -> Subscription | None:
        """Returns what a group wants of a topic."""
        entry = self._consumers.get(group)
        return entry.subscriptions.get(topic) if entry else None

    def groups_of_topic(self, topic: str) -> list[str]:
        """Returns the groups that subscribe to a topic, sorted."""
        entries = self._consumers.items()
        return sorted(group for group, entry in entries if topic in entry.subscriptions)

    def statistics(self) -> RegistryStatistics:
        """Returns what the registry holds."""
        return RegistryStatistics(
            consumer_group_count=len(self._consumers),
            producer_group_count=len(self._producers),
            member_count=self._member_count,
        )

    def __repr__(self) -> str:
        return f"<ClientRegistry consumers={len(self._consumers)} members={self._member_count}>"

    def _admit(self, *, new_group: bool) -> None:
        if self._member_count >= self._members_max:
            raise FlowControlError(f"members_max = {self._members_max} is reached")
        if new_group and len(self._consumers) + len(self._producers) >= self._groups_max:
            raise FlowControlError(f"groups_max = {self._groups_max} is reached")

    def _compare(self, entry: ConsumerGroup) -> None:
        """Looks whether the members agree."""
        kinds = {member.wanted for member in entry.members.values() if member.wanted is not None}
        differs = len(kinds) > 1
        if differs and not entry.differs:
            self.guard_counts.detected += 1
            logger.warning(
                "members of a group subscribe to different things: group=%s members=%d kinds=%d",
                entry.name,
                len(entry.members),
                len(kinds),
            )
        elif entry.differs and not differs:
            logger.info("members of a group agree again: group=%s", entry.name)
        entry.differs = differs

    def _refuse_different(
        self, entry: ConsumerGroup, identity: ClientIdentity, wanted: Wanted
    ) -> None:
        others = [
            member.wanted
            for member in entry.members.values()
            if member.wanted is not None and member.identity.client_id != identity.client_id
        ]
        if others and wanted not in others:
            self.guard_counts.refused += 1
            raise SubscriptionDiffersError(
                f"group {entry.name} refuses a member that subscribes to other things than the "
                f"others ({GUARD}={REFUSE}): {_shown(wanted)} instead of {_shown(others[0])}"
            )

    def _remove_producer(self, connection_id: int, client_id: str | None, group: str) -> None:
        members = self._producers.get(group, {})
        if not _is_member(members, connection_id, client_id):
            return
        del members[connection_id]
        if not members:
            del self._producers[group]
        _forget(self._producer_groups_of, connection_id, group)
        self._member_count -= 1

    def _remove_consumer(self, connection_id: int, client_id: str | None, group: str) -> bool:
        entry = self._consumers.get(group)
        if entry is None or not _is_member(entry.members, connection_id, client_id):
            return False
        del entry.members[connection_id]
        if not entry.members:
            del self._consumers[group]
        elif entry.differs:
            self._compare(entry)
        _forget(self._consumer_groups_of, connection_id, group)
        self._member_count -= 1
        return True


def wanted_of(subscriptions: Iterable[Subscription]) -> Wanted:
    """Returns what subscriptions come to, so that equal ones compare equal.

    The order of tags does not matter, nor how they are spaced.
    """
    return tuple(sorted((s.topic, *_filter_of(s)) for s in subscriptions))


def _filter_of(subscription: Subscription) -> tuple[str, str]:
    language = subscription.expression_type or "TAG"
    text = subscription.expression.strip()
    if language != "TAG":
        return language, text
    tags = sorted({tag for part in text.split("||") if (tag := part.strip())})
    return language, "*" if not tags or "*" in tags else " || ".join(tags)


def _shown(wanted: Wanted) -> str:
    return ", ".join(f"{topic}: {text}" for topic, _, text in wanted)[:200]


def _merge(held: dict[str, Subscription], wanted: Iterable[Subscription]) -> bool:
    """Takes over newer subscriptions and drops topics that are no longer wanted."""
    changed = False
    names = set()
    for subscription in wanted:
        names.add(subscription.topic)
        known = held.get(subscription.topic)
        if known is None:
            held[subscription.topic] = subscription
            changed = True
        elif subscription.version > known.version:
            # A newer version alone is not a change of who gets what: clients renew it at will.
            held[subscription.topic] = subscription
    for topic in [topic for topic in held if topic not in names]:
        del held[topic]
        changed = True
    return changed


def _is_member(members: dict[int, Member], connection_id: int, client_id: str | None) -> bool:
    member = members.get(connection_id)
    return member is not None and client_id in (None, member.identity.client_id)


def _older(members: dict[int, Member], limit_ms: int) -> list[int]:
    return [number for number, member in members.items() if member.last_seen_ms < limit_ms]


def _forget(groups_of: dict[int, set[str]], connection_id: int, group: str) -> None:
    groups = groups_of[connection_id]
    groups.discard(group)
    if not groups:
        del groups_of[connection_id]
