"""The registry of clients: membership, subscriptions, expiry and limits."""

from typing import NamedTuple

import pytest

from broker import consumers
from broker.consumers import ClientIdentity, ClientRegistry
from dledger.errors import FlowControlError, InvalidParameterError

KIND = ("CONSUME_PASSIVELY", "CLUSTERING", "CONSUME_FROM_LAST_OFFSET")


class Subscribed(NamedTuple):
    topic: str
    version: int = 1
    expression: str = "*"
    expression_type: str = "TAG"


def registry(groups_max=100, members_max=100):
    return ClientRegistry(expiry_ms=120_000, groups_max=groups_max, members_max=members_max)


def identity(connection_id=1, client_id="c1"):
    return ClientIdentity(connection_id, client_id, f"127.0.0.1:{connection_id}", "JAVA", 477)


def join(clients, who, group="g", topics=("t",), now_ms=0, version=1):
    wanted = None if topics is None else [Subscribed(topic, version) for topic in topics]
    return clients.register_consumer(who, group, kind=KIND, subscriptions=wanted, now_ms=now_ms)


def test_joining_is_a_change_and_repeating_is_not():
    clients = registry()
    assert join(clients, identity(1, "c1"))
    assert not join(clients, identity(1, "c1"), version=2)
    assert join(clients, identity(2, "c2"))
    assert clients.client_ids("g") == ["c1", "c2"]
    assert clients.connection_ids("g") == [1, 2]


def test_subscriptions_follow_the_newest_version_and_vanish_when_unlisted():
    clients = registry()
    join(clients, identity(), topics=("t", "u"), version=5)
    assert not join(clients, identity(), topics=("t", "u"), version=4)
    assert clients.subscription("g", "t").version == 5
    assert not join(clients, identity(), topics=None)
    assert clients.groups_of_topic("u") == ["g"]
    assert join(clients, identity(), topics=("t",), version=6)
    assert clients.subscription("g", "u") is None
    assert clients.groups_of_topic("u") == []


def test_closing_one_of_two_connections_of_a_client_keeps_the_client():
    clients = registry()
    join(clients, identity(1, "c1"))
    join(clients, identity(2, "c1"))
    assert clients.connection_lost(1) == ["g"]
    assert clients.client_ids("g") == ["c1"]
    assert clients.connection_lost(2) == ["g"]
    assert clients.consumer_group("g") is None
    assert clients.connection_lost(2) == []


def test_goodbye_needs_the_right_client_on_the_right_connection():
    clients = registry()
    join(clients, identity(1, "c1"))
    clients.register_producer(identity(1, "c1"), "p", 0)
    assert not clients.unregister(1, "other", consumer_group="g")
    assert not clients.unregister(2, "c1", consumer_group="g", producer_group="p")
    assert clients.producer_members("p") == [identity(1, "c1")]
    assert clients.unregister(1, "c1", consumer_group="g", producer_group="p")
    assert clients.producer_members("p") == []
    assert clients.statistics().member_count == 0


def test_silence_expires_members():
    clients = registry()
    join(clients, identity(1, "c1"), now_ms=0)
    join(clients, identity(2, "c2"), now_ms=60_000)
    clients.register_producer(identity(3, "p1"), "p", 0)
    assert clients.expire(120_000) == []
    assert clients.expire(120_001) == ["g"]
    assert clients.client_ids("g") == ["c2"]
    assert clients.producer_members("p") == []
    statistics = clients.statistics()
    assert (statistics.consumer_group_count, statistics.member_count) == (1, 1)


def test_heartbeats_renew():
    clients = registry()
    join(clients, identity(), now_ms=0)
    clients.register_producer(identity(), "p", 0)
    join(clients, identity(), now_ms=100_000)
    clients.register_producer(identity(), "p", 100_000)
    assert clients.expire(150_000) == []


def test_limits_refuse_newcomers_and_change_nothing():
    clients = registry(groups_max=2, members_max=3)
    join(clients, identity(1), group="a")
    clients.register_producer(identity(1), "p", 0)
    with pytest.raises(FlowControlError, match="groups_max = 2"):
        join(clients, identity(1), group="b")
    join(clients, identity(2, "c2"), group="a")
    with pytest.raises(FlowControlError, match="members_max = 3"):
        join(clients, identity(3, "c3"), group="a")
    assert not join(clients, identity(2, "c2"), group="a")
    assert clients.statistics().member_count == 3


def test_too_many_topics_are_refused(monkeypatch):
    monkeypatch.setattr(consumers, "TOPICS_PER_GROUP_MAX", 2)
    clients = registry()
    with pytest.raises(InvalidParameterError, match="more than 2 topics"):
        join(clients, identity(), topics=("a", "b", "c"))
    assert clients.consumer_group("g") is None


def test_a_client_that_changes_its_name_is_a_change():
    clients = registry()
    join(clients, identity(1, "c1"))
    assert join(clients, identity(1, "renamed"))
    assert clients.client_ids("g") == ["renamed"]
