"""Every queue has exactly one owner, whoever computes it and in whatever order things came."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from dledger.allocation import (
    Strategy,
    allocate_average,
    allocate_circle,
    allocate_configured,
    allocate_consistent_hash,
    allocate_machine_room,
    difference,
)
from dledger.model import MessageQueue

queues = st.sets(
    st.builds(
        MessageQueue,
        st.just("t"),
        st.sampled_from(["broker-a", "broker-b", "east@broker-c", "west@broker-d"]),
        st.integers(0, 40),
    ),
    max_size=60,
)
members = st.sets(st.text("abcXYZ019@#", min_size=1, max_size=6), min_size=1, max_size=12)
strategies = st.sampled_from([allocate_average, allocate_circle])


@given(queues, members, strategies, st.randoms(use_true_random=False))
def test_shares_partition_the_queues(
    all_queues: set[MessageQueue], ids: set[str], allocate: Strategy, chance: random.Random
) -> None:
    shares: list[MessageQueue] = []
    sizes = []
    for me in ids:
        # Each member has its own order of both lists; nobody agrees on anything beforehand.
        mine, others = list(all_queues), list(ids)
        chance.shuffle(mine)
        chance.shuffle(others)
        share = allocate(mine, others, me)
        assert share == sorted(share)
        shares += share
        sizes.append(len(share))
    assert sorted(shares) == sorted(all_queues)
    assert max(sizes) - min(sizes) <= 1


@given(queues, members)
def test_the_ring_partitions_the_queues_and_moves_only_what_it_must(
    all_queues: set[MessageQueue], ids: set[str]
) -> None:
    before = {
        queue: me for me in ids for queue in allocate_consistent_hash([*all_queues], [*ids], me)
    }
    assert set(before) == all_queues
    more = {*ids, "one more"}
    after = {
        queue: me for me in more for queue in allocate_consistent_hash([*all_queues], [*more], me)
    }
    assert set(after) == all_queues
    assert all(after[queue] in (before[queue], "one more") for queue in all_queues)


@given(queues, members)
def test_rooms_are_shared_out_evenly_and_others_left_alone(
    all_queues: set[MessageQueue], ids: set[str]
) -> None:
    shares = [allocate_machine_room([*all_queues], [*ids], me, rooms={"east"}) for me in ids]
    east = {queue for queue in all_queues if queue.broker_name.startswith("east@")}
    assert sorted(queue for share in shares for queue in share) == sorted(east)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@given(queues, members, queues)
def test_configured_queues_are_read_if_they_exist(
    all_queues: set[MessageQueue], ids: set[str], wanted: set[MessageQueue]
) -> None:
    for me in [*ids, "not a member"]:
        share = allocate_configured([*all_queues], [*ids], me, configured=wanted)
        assert share == sorted(all_queues & wanted)


@given(members, st.integers(1, 8))
def test_configured_members_still_share_the_retry_topic(ids: set[str], count: int) -> None:
    retries = [MessageQueue("%RETRY%g", "broker-a", number) for number in range(count)]
    shares = [allocate_configured(retries, [*ids], me, configured=[]) for me in ids]
    assert sorted(queue for share in shares for queue in share) == retries


@given(queues, members, strategies)
def test_a_member_that_the_brokers_do_not_know_takes_nothing(
    all_queues: set[MessageQueue], ids: set[str], allocate: Strategy
) -> None:
    assert allocate(list(all_queues), list(ids), "not a member") == []


@given(queues, members, members)
def test_average_shares_are_runs_and_agree_with_the_reference_formula(
    all_queues: set[MessageQueue], ids: set[str], _: set[str]
) -> None:
    ranked, order = sorted(all_queues), sorted(ids)
    q, n = len(ranked), len(order)
    for i, me in enumerate(order):
        size = 1 if q <= n else q // n + (1 if i < q % n else 0)
        start = i * size if i < q % n else i * size + q % n
        if q <= n:
            start = i
        assert allocate_average(ranked, order, me) == ranked[start : start + size]


@given(queues, queues)
def test_difference_leads_from_one_set_to_the_other(
    held: set[MessageQueue], wanted: set[MessageQueue]
) -> None:
    change = difference(held, wanted)
    assert (held - set(change.revoked)) | set(change.added) == wanted
    assert not set(change.revoked) & wanted
    assert not set(change.added) & held
