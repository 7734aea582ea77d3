"""Slow broker groups are left alone for a while; order topics keep their queues."""

import pytest

from dledger.client.batching import Lane
from dledger.client.isolation import NO_ANSWER_S, Isolation, isolation_s
from dledger.client.routes import parse_order, topic_route
from dledger.client.topics import TopicLines
from dledger.errors import RemoteProtocolError
from dledger.model import MessageQueue
from dledger.remoting.bodies import BrokerData, QueueData, TopicRouteData


def route(order="", groups=("broker-a", "broker-b")):
    data = TopicRouteData(
        broker_datas=[BrokerData(broker_name=name, addresses={0: "h:1"}) for name in groups],
        queue_datas=[
            QueueData(broker_name=name, read_queue_count=2, write_queue_count=2) for name in groups
        ],
        order_topic_conf=order,
    )
    return topic_route("t", data)


def test_the_slower_the_longer():
    waits = [isolation_s(took_s) for took_s in (0.0, 0.5, 0.55, 1.0, 2.0, 3.0, 20.0)]
    assert waits == [0, 0, 2, 5, 6, 10, 30]
    assert isolation_s(NO_ANSWER_S) == 10


def test_a_slow_group_is_free_again_after_its_time_or_a_quick_answer():
    isolation = Isolation()
    assert isolation.is_free("a", 0.0)
    isolation.note("a", 0.6, now_s=10.0)
    assert not isolation.is_free("a", 11.9)
    assert isolation.is_free("b", 11.9)
    assert isolation.is_free("a", 12.0)
    isolation.note("a", 20.0, now_s=20.0)
    isolation.note("a", 0.01, now_s=21.0)
    assert isolation.is_free("a", 21.0)


def test_lanes_of_the_fittest_groups_and_of_any_if_none_is_fit():
    lines = TopicLines("t")
    lines.use(route())

    def names(*conditions):
        return {lane.queue.broker_name for lane in lines.free_lanes(99, *conditions)}

    assert names(lambda name: name == "broker-b", lambda name: True) == {"broker-b"}
    assert names(lambda name: False, lambda name: name == "broker-a") == {"broker-a"}
    assert names(lambda name: False, lambda name: False) == {"broker-a", "broker-b"}
    busy: list[Lane] = lines.free_lanes(99, lambda name: name == "broker-b")
    for lane in busy:
        lane.busy = True
    assert names(lambda name: name == "broker-b", lambda name: True) == set()


def test_lanes_come_in_their_turn_and_no_more_than_are_wanted():
    lines = TopicLines("t")
    lines.use(route())
    every = lines.free_lanes(99)
    assert len(every) == 4
    assert lines.free_lanes(3) == every[:3]
    lines.turn_taken(every[0])
    every[0].busy = every[2].busy = True
    assert lines.free_lanes(3) == [every[1], every[3]]
    lines.settled(every[0])
    assert lines.free_lanes(3) == [every[1], every[3], every[0]]
    assert lines.free_lanes(1) == [every[1]]


def test_what_a_choice_costs_does_not_depend_on_the_number_of_queues():
    lines = TopicLines("t")
    count = 10_000
    lines.use(route(f"broker-a:{count};broker-b:{count}"))
    asked = []

    def is_fit(name):
        asked.append(name)
        return True

    looked_at = 0

    class CountedLane(Lane):
        @property
        def busy(self):
            nonlocal looked_at
            looked_at += 1
            return False

        @busy.setter
        def busy(self, _):
            pass

    for place, queue in enumerate(lines._publish.queues):
        lines._publish_lanes[place] = CountedLane(queue)
    assert len(lines.free_lanes(5, is_fit)) == 5
    assert sorted(asked) == ["broker-a", "broker-b"]
    assert looked_at == 5


def test_lanes_with_messages_of_their_own_are_ready_when_they_are_idle():
    lines = TopicLines("t")
    lines.use(route())
    queue = lines.choose(None, None)
    first, second = object(), object()
    lines._pin(first, queue)
    [lane] = lines.take_ready()
    assert lines.take_ready() == []
    lane.busy = True
    lane.waiting.clear()  # as under way
    lines._pin(second, queue)
    assert lines.take_ready() == []
    lines.put_back(lane, [first])
    lines.settled(lane)
    assert lines.take_ready() == [lane]
    assert list(lane.waiting) == [first, second]


def test_an_order_topic_has_the_queues_configured_whichever_groups_are_up():
    wanted = [("broker-b", 0), ("broker-a", 0), ("broker-a", 1)]
    for groups in (["broker-a", "broker-b"], ["broker-a"], ["broker-a", "broker-b", "broker-c"]):
        found = route("broker-b:1;broker-a:2", groups)
        assert found.publish_queues == tuple(MessageQueue("t", name, n) for name, n in wanted)
        assert len(found.subscribe_queues) == 2 * len(groups)
    assert len(route("").publish_queues) == 4


@pytest.mark.parametrize("text", ["broker-a", "broker-a:x", ":3", "broker-a:-1", "a:1000000"])
def test_a_torn_order_configuration_is_refused(text):
    with pytest.raises(RemoteProtocolError, match="order configuration"):
        parse_order(text)
