"""The replicated lock table: who may have which queue, by the clock in the commands."""

import pytest

from broker.feature_commands import decode_feature
from broker.locks import (
    EXPIRY_MS,
    LockClock,
    LockQueues,
    UnlockQueues,
    acceptable,
    holder,
    lock_key,
)
from dledger.clock import ManualClock
from dledger.errors import InvariantError
from store.state_rows import LOCKS
from tests.support import machine as machine_support

T0, T1 = ("t", 0), ("t", 1)


class Machine(machine_support.Machine):
    def lock(self, client, now_ms, *queues, group="g"):
        (granted,) = self.apply(LockQueues(group, client, now_ms, list(queues)))
        return granted


@pytest.fixture
def machine(tmp_path):
    made = Machine(tmp_path)
    yield made
    made.store.close()


def test_a_queue_has_one_owner_until_its_lock_expires(machine):
    assert machine.lock("a", 1000, T0, T1) == [T0, T1]
    assert machine.lock("b", 1001, T0) == []
    assert machine.lock("b", 1000 + EXPIRY_MS - 1, T0, T1) == []
    assert machine.lock("a", 2000 + EXPIRY_MS - 1001, T0) == [T0], "renewed"
    assert machine.lock("b", 1000 + EXPIRY_MS, T0, T1) == [T1], "the other was not"
    assert machine.lock("a", 1001 + EXPIRY_MS, T0, T1) == [T0]


def test_groups_do_not_know_each_other(machine):
    assert machine.lock("a", 5, T0, group="g") == [T0]
    assert machine.lock("b", 5, T0, group="gg") == [T0]
    assert lock_key("a", "bt", 0) != lock_key("ab", "t", 0)


def test_only_the_owner_gives_a_lock_back(machine):
    machine.lock("a", 5, T0, T1)
    assert machine.apply(UnlockQueues("g", "b", [T0, T1])) == [0]
    assert machine.lock("b", 6, T0) == []
    assert machine.apply(UnlockQueues("g", "a", [T0])) == [1]
    assert machine.lock("b", 6, T0, T1) == [T0]


def test_commands_of_one_transaction_see_each_other(machine):
    first, second, third, fourth = machine.apply(
        LockQueues("g", "a", 5, [T0]),
        LockQueues("g", "b", 6, [T0]),
        UnlockQueues("g", "a", [T0]),
        LockQueues("g", "b", 7, [T0]),
    )
    assert (first, second, third, fourth) == ([T0], [], 1, [T0])


def test_a_clock_that_goes_back_ends_no_lock_early(machine):
    machine.lock("a", 1_000_000, T0)
    assert machine.lock("a", 10, T1), "by a leader whose clock is behind"
    assert machine.lock("b", 1_000_000 + EXPIRY_MS - 1, T0, T1) == []


def test_locks_of_the_long_gone_are_forgotten(machine):
    for number in range(50):
        machine.lock("a", 5, ("t", number))
    machine.lock("b", 5 + 600_000, ("other", 0))
    assert len(machine.store.rows.scan(LOCKS, b"\x01g")) == 1


def test_the_table_survives_a_restart_and_the_clock_goes_on_from_it(tmp_path):
    machine = Machine(tmp_path)
    machine.lock("a", 90_000, T0)
    machine.reopen()
    wall = ManualClock(wall_ms=1)
    clock = LockClock(machine.store.rows, wall)
    wall.advance(1000)
    clock.on_serving(7)
    assert clock.now_ms() == 90_000, "the time without a leader does not count"
    wall.advance(59.9)
    assert machine.lock("b", clock.now_ms(), T0) == []
    assert holder(machine.store.rows, "g", *T0, clock.now_ms()) == "a"
    wall.advance(0.2)
    assert holder(machine.store.rows, "g", *T0, clock.now_ms()) is None
    assert machine.lock("b", clock.now_ms(), T0) == [T0]
    machine.store.close()


def test_what_may_be_locked():
    count = {"t": 2}.get
    asked = [
        ("t", "a", 0),
        ("t", "a", 0),
        ("t", "a", 2),
        ("t", "b", 1),
        ("x", "a", 0),
        ("t", "a", -1),
        ("t", "a", 1),
    ]
    found = acceptable(asked, broker_name="a", queue_count=lambda topic: count(topic, 0))
    assert found == [T0, T1]


@pytest.mark.parametrize("body", [b"\x30", b"\x30\x02\x94", b"\x3f\x01\x90", b"\x30\x01\x93aaa"])
def test_malformed_commands_are_never_skipped(body):
    with pytest.raises(InvariantError):
        decode_feature(body)
