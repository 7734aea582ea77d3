from __future__ import annotations

import pytest

from dledger.client.config import (
    ProducerConfig,
    PushConsumerConfig,
    SessionConfig,
    nameserver_addresses,
)
from dledger.client.filters import subscribe
from dledger.client.routes import RouteCache, topic_route
from dledger.client.selection import PublishList, queue_of_key
from dledger.errors import ConfigError, InvalidParameterError
from dledger.message import java_hash
from dledger.model import MessageQueue
from dledger.remoting.bodies import BrokerData, QueueData, TopicRouteData


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("a:1", ("a:1",)),
        ("a:1;b:2", ("a:1", "b:2")),
        ("a:1, b:2,a:1", ("a:1", "b:2")),
        (["a:1", "[::1]:2"], ("a:1", "[::1]:2")),
    ],
)
def test_nameservers(given: str | list[str], expected: tuple[str, ...]) -> None:
    assert nameserver_addresses(given) == expected


def test_nameservers_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLEDGER_NAMESERVER", "x:1;y:2")
    assert nameserver_addresses() == ("x:1", "y:2")
    monkeypatch.delenv("DLEDGER_NAMESERVER")
    with pytest.raises(ConfigError, match="DLEDGER_NAMESERVER"):
        nameserver_addresses()


@pytest.mark.parametrize("given", ["", "nohost", "host:", ":1", "host:0", "host:70000", "h:²", []])
def test_bad_nameservers(given: str | list[str]) -> None:
    with pytest.raises(ConfigError):
        nameserver_addresses(given)


def test_bad_settings_name_the_field() -> None:
    with pytest.raises(ConfigError, match="send_timeout_s"):
        ProducerConfig(send_timeout_s=0)
    with pytest.raises(ConfigError, match="batch_bytes_max"):
        ProducerConfig(batch_bytes_max=5 * 1024 * 1024)
    with pytest.raises(ConfigError, match="strategy"):
        PushConsumerConfig(strategy="BEST")
    with pytest.raises(ConfigError, match="redelivery_max_s"):
        PushConsumerConfig(redelivery_min_s=5, redelivery_max_s=1)
    with pytest.raises(ConfigError, match="leader_poll_s"):
        SessionConfig(leader_poll_s=-1)


def test_subscriptions() -> None:
    some = subscribe("t", " TagA || TagB||TagA ", 7)
    assert some.expression == "TagA || TagB"
    assert some.codes == (2598919, 2598920)
    assert some.matches("TagA")
    assert not some.matches("TagC")
    assert not some.matches("")
    everything = subscribe("t", "*", 7)
    assert everything.codes == ()
    assert everything.matches("") and everything.matches("TagC")
    assert subscribe("t", "a || *", 7).expression == "*"
    with pytest.raises(ConfigError, match="empty tag"):
        subscribe("t", "a || || b", 7)
    with pytest.raises(InvalidParameterError):
        subscribe("bad topic", "*", 7)


QUEUES = [MessageQueue("t", name, number) for name in ("a", "b") for number in range(3)]


def test_equal_keys_go_to_the_same_queue() -> None:
    for key in ("", "order-1", "中文", "\U0001f600"):
        assert queue_of_key(QUEUES, key) == QUEUES[abs(java_hash(key)) % 6]
        assert queue_of_key(QUEUES, key) == queue_of_key(QUEUES, key)


def test_explicit_queues() -> None:
    publish = PublishList("t", QUEUES)
    assert publish.explicit(QUEUES[4]) == QUEUES[4]
    assert publish.explicit(2) == QUEUES[2]
    for wanted in (3, -1, MessageQueue("t", "c", 0)):
        with pytest.raises(InvalidParameterError):
            publish.explicit(wanted)
        with pytest.raises(InvalidParameterError):
            PublishList("t").explicit(wanted)
    assert [publish.place(queue) for queue in QUEUES] == [0, 1, 2, 3, 4, 5]
    assert publish.place(MessageQueue("t", "c", 0)) is None
    assert publish.broker_names == ("a", "b")


def route_data(permission: int = 6, addresses: dict[int, str] | None = None) -> TopicRouteData:
    return TopicRouteData(
        broker_datas=[
            BrokerData(
                broker_name="a", addresses={0: "h:1", 2: "h:2"} if addresses is None else addresses
            )
        ],
        queue_datas=[
            QueueData(
                broker_name="a", read_queue_count=3, write_queue_count=2, permission=permission
            ),
            QueueData(broker_name="gone", read_queue_count=3, write_queue_count=2),
        ],
    )


def test_routes_list_what_may_be_written_and_read() -> None:
    route = topic_route("t", route_data())
    assert route.publish_queues == (MessageQueue("t", "a", 0), MessageQueue("t", "a", 1))
    assert len(route.subscribe_queues) == 3
    assert topic_route("t", route_data(2)).subscribe_queues == ()
    assert topic_route("t", route_data(4)).publish_queues == ()
    assert topic_route("t", route_data(addresses={})).publish_queues == ()
    assert len(topic_route("t", route_data(), queues_max=1).subscribe_queues) == 1


def test_the_cache_tells_what_changed() -> None:
    cache = RouteCache()
    assert cache.update(topic_route("t", route_data()), 0)
    assert not cache.update(topic_route("t", route_data()), 0)
    assert cache.book("a").leader == "h:1"
    assert cache.update(topic_route("t", route_data(addresses={0: "h:2", 1: "h:1"})), 0)
    assert cache.book("a").leader == "h:2"
    assert cache.broker_names(["t", "unknown"]) == ["a"]
    assert cache.topics == ["t"]


def test_a_group_without_a_leader_keeps_its_queues() -> None:
    """While a group elects, its route has no id 0; sends wait instead of failing."""
    route = topic_route("t", route_data(addresses={1: "h:1", 2: "h:2"}))
    assert len(route.publish_queues) == 2
