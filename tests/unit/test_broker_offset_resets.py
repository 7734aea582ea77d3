"""Pending resets as replicated state, and who is told to move."""

import pytest

from broker.commands import (
    encode_commit_offsets,
    encode_delete_group,
    encode_delete_topic,
    encode_put_topic,
)
from broker.offset_resets import PendingResets, ResetOffsets, ResetsFollowed
from dledger.model import TopicConfig
from store.state_rows import OFFSET_RESETS
from tests.support.machine import Machine

KEY = ("g", 1, 0)


@pytest.fixture
def machine(tmp_path):
    made = Machine(tmp_path)
    made.apply(encode_put_topic(TopicConfig(name="t")))
    yield made
    made.store.close()


def pending(machine):
    return PendingResets(machine.store.rows, lambda _key, _offset: None)


def test_a_reset_sets_the_offset_and_is_pending_until_followed(machine):
    assert machine.apply(ResetOffsets("g", "t", [(0, 5), (1, 7)])) == [2]
    assert machine.effects[-1].resets == [(1, 0), (1, 1)]
    assert machine.store.consumer_offset("g", "t", 1) == 7
    found = pending(machine)
    assert (found.target(KEY), found.target(("g", 1, 1)), found.target(("g", 1, 2))) == (5, 7, None)
    machine.apply(encode_commit_offsets([("g", "t", 0, 99)]))
    assert pending(machine).target(KEY) == 5, "a commit that was under way does not undo it"
    assert machine.apply(ResetsFollowed("g", 1, [(0, 6)])) == [0], "another reset meanwhile"
    assert machine.apply(ResetsFollowed("g", 1, [(0, 5)])) == [1]
    assert pending(machine).target(KEY) is None


def test_without_the_topic_nothing_happens(machine):
    assert machine.apply(ResetOffsets("g", "absent", [(0, 5)])) == [0]
    assert machine.store.rows.scan(OFFSET_RESETS, b"") == []


def test_what_is_deleted_takes_its_resets_with_it(machine):
    machine.apply(encode_put_topic(TopicConfig(name="u")))
    for group in ("g", "gg"):
        for topic in ("t", "u"):
            machine.apply(ResetOffsets(group, topic, [(0, 5)]))
    machine.apply(encode_delete_group("g", delete_offsets=False))
    assert pending(machine).target(KEY) == 5
    machine.apply(encode_delete_group("g"))
    assert pending(machine).target(KEY) is None
    machine.apply(encode_delete_topic("t"))
    found = pending(machine)
    assert (found.target(("gg", 1, 0)), found.target(("gg", 2, 0))) == (None, 5)


def test_restart_keeps_them(machine):
    machine.apply(ResetOffsets("g", "t", [(0, 5)]))
    digest = machine.store.digest()
    machine.reopen()
    assert pending(machine).target(KEY) == 5
    assert machine.store.digest() == digest


def test_who_has_come_is_not_told_again_while_the_log_hears_of_it(machine):
    machine.apply(ResetOffsets("g", "t", [(0, 5)]))
    asked = []
    found = PendingResets(machine.store.rows, lambda key, offset: asked.append((key, offset)))
    found.has_come(KEY, 5)
    assert (asked, found.target(KEY)) == ([(KEY, 5)], None)
    found.settled(KEY, 5)
    assert found.target(KEY) == 5, "the proposal failed"
    found.has_come(KEY, 5)
    machine.apply(ResetOffsets("g", "t", [(0, 3)]))
    found.changed()
    assert found.target(KEY) == 3, "a newer reset counts at once"
