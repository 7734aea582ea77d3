"""Every queue has exactly one owner, whoever computes it and in whatever order things came."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from dledger.client.rebalance import (
    Strategy,
    allocate_average,
    allocate_circle,
    difference,
)
from dledger.model import MessageQueue

queues = st.sets(
    st.builds(
        MessageQueue,
        st.just("t"),
        st.sampled_from(["broker-a", "broker-b", "broker-c"]),
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
