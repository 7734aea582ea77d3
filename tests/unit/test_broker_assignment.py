"""Who gets which queues when the broker shares them out."""

import pytest

from broker.processors.assignment import queues_of, share
from broker.request_modes import ModeRow
from dledger.model import MessageQueue
from dledger.remoting.bodies import QueueData, TopicRouteData

QUEUES = [MessageQueue("t", broker, n) for broker in ("a", "b") for n in range(3)]


def numbers(queues):
    return [(queue.broker_name, queue.queue_id) for queue in queues]


def test_pulling_members_share_without_overlap():
    members = ["x", "y"]
    shares = [share(QUEUES, members, me, "AVG", ModeRow()) for me in members]
    assert sorted(shares[0] + shares[1]) == QUEUES
    assert len(shares[0]) == len(shares[1]) == 3


@pytest.mark.parametrize("count", [-1, 0, 2, 9])
def test_popping_members_get_every_broker(count):
    found = share(QUEUES, ["x", "y", "z"], "x", "AVG", ModeRow("POP", count))
    assert numbers(found) == [("a", -1), ("b", -1)]


def test_popping_members_share_with_those_that_follow():
    members = ["w", "x", "y", "z"]
    found = [share(QUEUES, members, me, "AVG", ModeRow("POP", 1)) for me in members]
    own = [share(QUEUES, members, me, "AVG", ModeRow()) for me in members]
    for number in range(4):
        assert set(found[number]) == set(own[number]) | set(own[(number + 1) % 4])


def test_more_popping_members_than_queues():
    members = [f"m{n}" for n in range(9)]
    found = [share(QUEUES, members, me, "AVG", ModeRow("POP", 1)) for me in members]
    assert all(len(queues) == 1 for queues in found)
    assert {queue for queues in found for queue in queues} == set(QUEUES)
    assert share(QUEUES, members, "stranger", "AVG", ModeRow("POP", 1)) == []


def test_only_readable_queues_count():
    route = TopicRouteData(
        queue_datas=[
            QueueData(broker_name="a", read_queue_count=2, write_queue_count=9, permission=6),
            QueueData(broker_name="b", read_queue_count=2, write_queue_count=2, permission=2),
        ]
    )
    assert numbers(queues_of("t", route)) == [("a", 0), ("a", 1)]
