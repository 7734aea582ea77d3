from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from dledger.errors import FlowControlError, TopicNotFoundError
from dledger.model import TopicConfig
from nameserver.route_table import (
    DataVersion,
    Registration,
    RouteLimits,
    RouteTable,
    StaleRegistrationError,
    address_is_valid,
)


def registration(
    broker_id: int,
    address: str,
    term: int = 0,
    *,
    topics: tuple[str, ...] = (),
    connection_id: int = 1,
    version: int = 1,
    name: str = "broker-a",
    cluster: str = "C",
    expiry_ms: int | None = None,
    state_version: int = 0,
) -> Registration:
    return Registration(
        cluster=cluster,
        broker_name=name,
        broker_id=broker_id,
        address=address,
        ha_address=address + "0",
        term=term,
        connection_id=connection_id,
        expiry_ms=expiry_ms,
        topics={topic: TopicConfig(name=topic) for topic in topics},
        data_version=DataVersion(counter=version, state_version=state_version),
    )


def addresses(table: RouteTable, name: str = "broker-a") -> Mapping[int, str]:
    group = table.group(name)
    return group.addresses if group else {}


def test_leader_and_followers_make_a_route() -> None:
    table = RouteTable()
    first = table.register(registration(0, "h:1", 3, topics=("T",)), 0)
    assert first.is_new_member
    assert first.is_new_leader
    assert first.topics_changed
    second = table.register(registration(2, "h:2", 3, topics=("ignored",)), 0)
    assert (second.leader_address, second.leader_ha_address) == ("h:1", "h:10")
    assert not second.is_new_leader
    route = table.route("T")
    assert [dict(group.addresses) for group in route.groups] == [{0: "h:1", 2: "h:2"}]
    assert route.topics["broker-a"].write_queue_count == 4
    assert table.topics() == ["T"]
    with pytest.raises(TopicNotFoundError, match=r"No topic route info .* ignored"):
        table.route("ignored")


def test_higher_term_takes_the_route_and_lower_never_does() -> None:
    table = RouteTable()
    table.register(registration(0, "h:1", 3, topics=("old",)), 0)
    table.register(registration(0, "h:2", 4, topics=("new",), connection_id=2), 0)
    assert addresses(table) == {0: "h:2"}
    for term in (0, 3):
        with pytest.raises(StaleRegistrationError) as caught:
            table.register(registration(0, "h:1", term, topics=("old",)), 1)
        assert caught.value.known_term == 4
    assert addresses(table) == {0: "h:2"}
    assert table.topics() == ["new"]


def test_deposed_leader_cannot_return_while_the_new_one_is_gone() -> None:
    table = RouteTable()
    table.register(registration(0, "h:1", 3, connection_id=1), 0)
    table.register(registration(3, "h:3", 3, connection_id=3), 0)
    table.register(registration(0, "h:2", 4, connection_id=2), 0)
    table.connection_lost(2)
    with pytest.raises(StaleRegistrationError):
        table.register(registration(0, "h:1", 3), 1)
    assert addresses(table) == {3: "h:3"}
    assert table.register(registration(0, "h:2", 4, connection_id=5), 1).is_new_leader


def test_same_term_belongs_to_one_address() -> None:
    table = RouteTable()
    table.register(registration(0, "h:1", 3), 0)
    with pytest.raises(StaleRegistrationError):
        table.register(registration(0, "h:2", 3), 0)
    assert not table.register(registration(0, "h:1", 3), 5).is_new_leader


def test_brokers_without_terms_follow_the_state_version() -> None:
    table = RouteTable()
    table.register(registration(0, "h:1", state_version=2), 0)
    with pytest.raises(StaleRegistrationError):
        table.register(registration(0, "h:2", state_version=1), 0)
    table.register(registration(0, "h:2", state_version=2), 0)
    assert addresses(table) == {0: "h:2"}


def test_role_change_moves_the_address() -> None:
    table = RouteTable()
    table.register(registration(0, "h:1", 3, topics=("T",)), 0)
    table.register(registration(2, "h:2", 3), 0)
    table.register(registration(1, "h:1", 4), 0)
    assert addresses(table) == {1: "h:1", 2: "h:2"}
    assert dict(table.route("T").groups[0].addresses) == {1: "h:1", 2: "h:2"}
    table.register(registration(0, "h:2", 4, topics=("T",)), 0)
    assert addresses(table) == {0: "h:2", 1: "h:1"}


def test_overtaken_follower_announcement_does_not_undo_an_election() -> None:
    table = RouteTable()
    table.register(registration(0, "h:1", 4), 0)
    with pytest.raises(StaleRegistrationError):
        table.register(registration(1, "h:1", 3), 0)
    assert addresses(table) == {0: "h:1"}


def test_group_without_leader_keeps_its_topics_until_the_last_replica_goes() -> None:
    table = RouteTable()
    table.register(registration(0, "h:1", 3, topics=("T",), connection_id=1), 0)
    table.register(registration(2, "h:2", 3, connection_id=2), 0)
    [lost] = table.connection_lost(1)
    assert (lost.broker_id, lost.address) == (0, "h:1")
    assert dict(table.route("T").groups[0].addresses) == {2: "h:2"}
    table.connection_lost(2)
    assert table.topics() == []
    assert table.groups() == []
    # A group set up afresh under the same name starts with low terms again.
    assert table.register(registration(0, "h:9", 1), 0).is_new_leader


def test_lost_connection_spares_who_registered_again_elsewhere() -> None:
    table = RouteTable()
    table.register(registration(0, "h:1", 3, connection_id=1), 0)
    table.register(registration(0, "h:1", 3, connection_id=2), 0)
    assert table.connection_lost(1) == []
    assert addresses(table) == {0: "h:1"}
    assert table.heartbeat("broker-a", "h:1", 7, 1)
    assert table.connection_lost(2) == []
    assert len(table.connection_lost(7)) == 1


def test_expiry() -> None:
    table = RouteTable(RouteLimits(expiry_ms=1000, expiry_min_ms=100, expiry_max_ms=2000))
    assert table.next_deadline_ms() is None
    table.register(registration(0, "h:1", 1), 0)
    table.register(registration(1, "h:2", 1, expiry_ms=1), 0)
    table.register(registration(2, "h:3", 1, expiry_ms=10**9), 0)
    assert table.next_deadline_ms() == 100
    assert [m.address for m in table.expire(100)] == ["h:2"]
    assert table.heartbeat("broker-a", "h:1", 1, 999)
    assert not table.heartbeat("broker-a", "h:2", 1, 999)
    assert not table.heartbeat("broker-x", "h:1", 1, 999)
    assert table.expire(1998) == []
    assert sorted(m.address for m in table.expire(2000)) == ["h:1", "h:3"]


def test_unregister_needs_the_exact_replica() -> None:
    table = RouteTable()
    table.register(registration(0, "h:1", 1), 0)
    assert not table.unregister("broker-a", 0, "h:2")
    assert not table.unregister("broker-a", 1, "h:1")
    assert not table.unregister("broker-x", 0, "h:1")
    assert table.unregister("broker-a", 0, "h:1")
    assert table.groups() == []


def test_topics_follow_term_and_version() -> None:
    table = RouteTable()
    table.register(registration(0, "h:1", 1, topics=("A", "B"), version=1), 0)
    assert table.delete_topic("A")
    assert not table.delete_topic("A")
    again = table.register(registration(0, "h:1", 1, topics=("A", "B"), version=1), 0)
    assert not again.topics_changed
    assert table.topics() == ["B"]
    assert table.register(registration(0, "h:1", 1, topics=("A", "B"), version=2), 0).topics_changed
    assert table.topics() == ["A", "B"]
    assert table.data_version("broker-a", "h:1") == DataVersion(counter=2)
    assert table.data_version("broker-a", "h:2") is None
    table.register(registration(0, "h:2", 2, topics=("C",), version=2), 0)
    assert table.topics() == ["C"]


def test_clusters_and_topics_by_cluster() -> None:
    table = RouteTable()
    table.register(registration(0, "h:1", 1, topics=("A",), name="b", cluster="Y"), 0)
    table.register(registration(0, "h:2", 1, topics=("A", "B"), name="a", cluster="X"), 0)
    assert table.clusters() == {"X": ["a"], "Y": ["b"]}
    assert table.topics("Y") == ["A"]
    assert table.topics("Z") == []
    assert [group.broker_name for group in table.route("A").groups] == ["a", "b"]
    assert table.delete_topic("A", "Y")
    assert [group.broker_name for group in table.route("A").groups] == ["a"]


def test_wiped_write_permission_survives_fail_over() -> None:
    table = RouteTable()
    table.register(registration(0, "h:1", 1, topics=("A", "B")), 0)
    assert table.set_write_wiped("broker-a", True) == 2
    assert table.set_write_wiped("broker-x", True) == 0
    table.register(registration(0, "h:2", 2, topics=("A",), version=9), 0)
    assert table.route("A").topics["broker-a"].permission == 4
    assert table.set_write_wiped("broker-a", False) == 1
    assert table.route("A").topics["broker-a"].permission == 6


def test_wiped_write_permission_survives_that_everybody_leaves() -> None:
    table = RouteTable()
    table.register(registration(0, "h:1", 1, topics=("A",)), 0)
    table.set_write_wiped("broker-a", True)
    table.unregister("broker-a", 0, "h:1")
    table.register(registration(0, "h:1", 2, topics=("A",)), 0)
    assert table.route("A").topics["broker-a"].permission == 4
    assert table.write_wiped == {"broker-a"}
    table.set_write_wiped("unknown", True)
    assert table.write_wiped == {"broker-a"}, "what is not registered cannot fill the table"
    table.unregister("broker-a", 0, "h:1")
    table.set_write_wiped("broker-a", False)
    assert table.write_wiped == set()


def test_put_topic_into_known_groups() -> None:
    table = RouteTable(RouteLimits(topics_max=2))
    table.register(registration(0, "h:1", 1, topics=("A",)), 0)
    config = TopicConfig(name="N")
    assert table.put_topic("N", {"broker-a": config, "broker-x": config}) == 1
    assert table.topics() == ["A", "N"]
    with pytest.raises(FlowControlError):
        table.put_topic("M", {"broker-a": config})


def test_limits() -> None:
    table = RouteTable(RouteLimits(groups_max=1, members_max=2, topics_max=1))
    table.register(registration(0, "h:1", 1), 0)
    table.register(registration(1, "h:2", 1), 0)
    with pytest.raises(FlowControlError, match="groups_max"):
        table.register(registration(0, "h:1", 1, name="other"), 0)
    with pytest.raises(FlowControlError, match="members_max"):
        table.register(registration(2, "h:3", 1), 0)
    with pytest.raises(FlowControlError, match="topics_max"):
        table.register(registration(0, "h:1", 1, topics=("A", "B")), 0)
    assert repr(table) == "<RouteTable groups=1 members=2>"


@pytest.mark.parametrize(
    ("address", "valid"),
    [
        ("127.0.0.1:10911", True),
        ("broker.example:1", True),
        ("127.0.0.1", False),
        (":1", False),
        ("h:0", False),
        ("h:65536", False),
        ("h:x", False),
        ("h\n:1", False),
        ("h h:1", False),
        ("h" * 300 + ":1", False),
        ("", False),
    ],
)
def test_address_is_valid(address: str, valid: bool) -> None:
    assert address_is_valid(address) is valid


def test_a_shared_address_stands_for_the_leader_but_for_those_who_want_the_replicas_own() -> None:
    table = RouteTable()
    leader = registration(0, "h:1", 3, topics=("T",), connection_id=1)
    table.register(replace(leader, shared_address="s:9"), 0)
    table.register(registration(2, "h:2", 3, connection_id=2), 0)

    def shown(*, own_addresses: bool) -> list[tuple[int, str]]:
        [group] = table.route("T", own_addresses=own_addresses).groups
        return list(group.addresses.items())

    assert shown(own_addresses=False) == [(0, "s:9"), (2, "h:2")]
    assert shown(own_addresses=True) == [(0, "h:1"), (2, "h:2")]
    assert addresses(table) == {0: "h:1", 2: "h:2"}
    # Nobody leads: the next leader will be found there, and one that did not get it says so.
    table.connection_lost(1)
    assert shown(own_addresses=False) == [(0, "s:9"), (2, "h:2")]
    assert shown(own_addresses=True) == [(2, "h:2")]
    table.register(registration(0, "h:2", 4, topics=("T",), connection_id=2), 0)
    assert shown(own_addresses=False) == [(0, "h:2")]
    table.connection_lost(2)
    with pytest.raises(TopicNotFoundError):
        table.route("T", own_addresses=False)
