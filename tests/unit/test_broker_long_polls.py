"""The table of waiting pulls: who is woken, who expires, and which limits hold."""

import random

import pytest

from broker.long_polls import BUCKET_MS, LongPolls, ParkedPull
from dledger.errors import FlowControlError, InvariantError


def table(parked_max=100, per_owner=50):
    return LongPolls(parked_max=parked_max, parked_per_owner_max=per_owner)


def pull(owner=1, topic_id=1, queue_id=0, offset=0, deadline_ms=1000, request=None):
    return ParkedPull(
        owner=owner,
        topic_id=topic_id,
        queue_id=queue_id,
        offset=offset,
        deadline_ms=deadline_ms,
        request=request,
    )


def test_arrival_wakes_only_the_queue_and_only_what_lies_below_the_new_end():
    polls = table()
    waiting, ahead, other_queue, other_topic = (
        pull(offset=5),
        pull(offset=6),
        pull(queue_id=1),
        pull(topic_id=2),
    )
    for each in (waiting, ahead, other_queue, other_topic):
        polls.park(each)

    assert polls.arrived(1, 0, 6) == [waiting]
    assert polls.arrived(1, 0, 6) == []
    assert polls.arrived(1, 0, 7) == [ahead]
    assert len(polls) == 2


def test_a_woken_pull_can_be_parked_again_further_on():
    polls = table()
    parked = pull(offset=5)
    polls.park(parked)
    assert polls.arrived(1, 0, 8) == [parked]
    parked.offset = 8
    polls.park(parked)
    assert polls.arrived(1, 0, 8) == []
    assert polls.arrived(1, 0, 9) == [parked]


def test_parking_twice_is_a_bug():
    polls = table()
    parked = pull()
    polls.park(parked)
    with pytest.raises(InvariantError):
        polls.park(parked)


def test_expiry_is_never_early_and_at_most_one_bucket_late():
    polls = table()
    parked = pull(deadline_ms=1001)
    polls.park(parked)
    due = polls.next_deadline_ms()
    assert 1001 <= due <= 1001 + BUCKET_MS
    assert polls.expire(due - 1) == []
    assert polls.expire(due) == [parked]
    assert polls.next_deadline_ms() is None


def test_next_deadline_skips_what_was_woken():
    polls = table()
    polls.park(pull(offset=0, deadline_ms=100))
    polls.park(pull(offset=9, deadline_ms=5000))
    polls.arrived(1, 0, 1)
    assert polls.next_deadline_ms() == 5000


def test_limits_are_named_and_park_nothing():
    polls = table(parked_max=3, per_owner=2)
    polls.park(pull(owner=1))
    polls.park(pull(owner=1))
    with pytest.raises(FlowControlError, match="parked_pulls_per_connection_max = 2"):
        polls.park(pull(owner=1))
    polls.park(pull(owner=2))
    with pytest.raises(FlowControlError, match="parked_pulls_max = 3"):
        polls.park(pull(owner=3))
    assert len(polls) == 3


def test_lost_connections_and_deleted_topics_leave_nothing():
    polls = table()
    mine, topic_two, rest = pull(owner=1), pull(owner=2, topic_id=2), pull(owner=3)
    for each in (mine, topic_two, rest):
        polls.park(each)
    assert polls.drop_owner(1) == [mine]
    assert polls.drop_owner(1) == []
    assert polls.drop_topic(2) == [topic_two]
    assert polls.drop_all() == [rest]
    statistics = polls.statistics()
    assert (statistics.parked_count, statistics.queue_count, statistics.owner_count) == (0, 0, 0)


def test_waking_and_parking_again_and_again_keeps_the_table_small():
    """A woken pull must not leave its deadline behind."""
    polls = table()
    for number in range(10_000):
        parked = pull(offset=number, deadline_ms=15_000 + number)
        polls.park(parked)
        assert polls.arrived(1, 0, number + 1) == [parked]
    assert len(polls._bucket_heap) <= 10_000 // BUCKET_MS + 2
    assert len(polls._bucket_heap) == len(polls._buckets)
    assert polls.next_deadline_ms() is None
    assert polls._bucket_heap == []


def test_random_operations_agree_with_a_plain_list():
    seed = 20261122
    rng = random.Random(seed)
    polls, model, now = table(parked_max=1000, per_owner=1000), [], 0
    for _ in range(3000):
        action = rng.randrange(5)
        if action <= 1:
            new = pull(
                owner=rng.randrange(4),
                topic_id=rng.randrange(3),
                queue_id=rng.randrange(2),
                offset=rng.randrange(10),
                deadline_ms=now + rng.randrange(400),
            )
            polls.park(new)
            model.append(new)
            continue
        if action == 2:
            key, end = (rng.randrange(3), rng.randrange(2)), rng.randrange(11)
            got = polls.arrived(*key, end)
            gone = [p for p in model if (p.topic_id, p.queue_id) == key and p.offset < end]
        elif action == 3:
            now += rng.randrange(200)
            got = polls.expire(now)
            gone = [p for p in model if -(-p.deadline_ms // BUCKET_MS) * BUCKET_MS <= now]
        else:
            owner = rng.randrange(4)
            got = polls.drop_owner(owner)
            gone = [p for p in model if p.owner == owner]
        assert set(got) == set(gone), f"seed {seed}"
        model = [p for p in model if p not in gone]
        assert len(polls) == len(model)
