"""Members of one group that subscribe to different things."""

import logging
from typing import NamedTuple

import pytest

from broker.consumers import ClientIdentity, ClientRegistry, SubscriptionDiffersError

KIND = ("CONSUME_PASSIVELY", "CLUSTERING", "CONSUME_FROM_LAST_OFFSET")


class Subscribed(NamedTuple):
    topic: str
    expression: str = "*"
    version: int = 1
    expression_type: str = "TAG"


class Group:
    def __init__(self):
        self.registry = ClientRegistry(expiry_ms=1000, groups_max=10, members_max=100)
        self.version = 0

    def join(self, number, *wanted, refuse=False):
        self.version += 1
        identity = ClientIdentity(number, f"client-{number}", "127.0.0.1:1", "PYTHON", 477)
        self.registry.register_consumer(
            identity,
            "g",
            kind=KIND,
            subscriptions=[Subscribed(t, e, self.version) for t, e in wanted],
            now_ms=0,
            refuse_different=refuse,
        )

    @property
    def differing(self):
        return self.registry.differences()


def test_equal_subscriptions_in_other_words_are_equal():
    group = Group()
    group.join(1, ("a", "x || y"), ("b", "*"))
    group.join(2, ("b", ""), ("a", "y||x"))
    assert group.differing == {}


def test_a_difference_is_logged_once_and_ends_with_the_member(caplog):
    caplog.set_level(logging.INFO, "broker.consumers")
    group = Group()
    group.join(1, ("a", "x"))
    for _ in range(3):
        group.join(2, ("a", "y"))
        group.join(1, ("a", "x"))
    assert group.differing == {"g": [("client-1", {"a": "x"}), ("client-2", {"a": "y"})]}
    assert group.registry.guard_counts.detected == 1
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    group.registry.connection_lost(2)
    assert group.differing == {}
    group.join(3, ("b", "x"))
    assert group.registry.guard_counts.detected == 2


def test_a_member_may_change_its_mind():
    group = Group()
    group.join(1, ("a", "x"))
    group.join(2, ("a", "y"))
    group.join(2, ("a", "x"))
    assert group.differing == {}


def test_refusing_keeps_newcomers_out_and_members_in():
    group = Group()
    group.join(1, ("a", "x"), refuse=True)
    with pytest.raises(SubscriptionDiffersError, match=r"a: y instead of a: x"):
        group.join(2, ("a", "y"), refuse=True)
    assert group.registry.client_ids("g") == ["client-1"]
    assert group.registry.guard_counts.refused == 1
    group.join(2, ("a", "x"), refuse=True)
    assert group.registry.client_ids("g") == ["client-1", "client-2"]
