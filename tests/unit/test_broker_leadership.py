"""When the leadership goes back to the preferred replica, and before a stop."""

import asyncio

import pytest

from broker.full_disk import leave_full_disk
from broker.gate import WriteGate
from broker.leadership import PreferredLeader, hand_over
from dledger.errors import TransferFailedError


def look(preferred, now, *, match=100, commit=100, connected=1):
    progress = {"a-0": {"connected": connected, "match_index": match}}
    return preferred.observe(now, commit_index=commit, progress=progress)


def test_it_hands_over_after_the_replica_was_stable_for_the_time():
    preferred = PreferredLeader("a-0", 10.0)
    assert [look(preferred, now) for now in (0.0, 5.0, 9.9, 10.0)] == [False, False, False, True]
    # An attempt that failed is not repeated at once.
    assert not look(preferred, 10.5)


def test_an_interruption_begins_the_time_anew():
    preferred = PreferredLeader("a-0", 10.0)
    look(preferred, 0.0)
    assert not look(preferred, 6.0, connected=0)
    assert not look(preferred, 7.0)
    assert not look(preferred, 16.0)
    assert look(preferred, 17.0)


def test_under_load_it_must_have_what_was_committed_a_look_ago():
    preferred = PreferredLeader("a-0", 2.0)
    look(preferred, 0.0, match=90, commit=100)
    assert not look(preferred, 1.0, match=190, commit=200)
    assert not look(preferred, 2.0, match=290, commit=300)
    assert look(preferred, 3.0, match=390, commit=400)
    preferred = PreferredLeader("a-0", 2.0)
    for now in range(5):  # always further behind than that
        assert not look(preferred, float(now), match=100 * now - 1, commit=100 * (now + 1))


def test_a_replica_that_does_not_lead_or_knows_no_such_peer_does_nothing():
    preferred = PreferredLeader("a-0", 1.0)
    assert not any(preferred.observe(now, commit_index=5, progress={}) for now in range(5))


class Raft:
    is_serving = True
    commit_index = 1

    def __init__(self, peers, error=None):
        self.peers = peers
        self.error = error
        self.asked = []

    def peer_progress(self):
        return self.peers

    async def transfer_leadership(self, target=None, *, timeout_s=2.0):
        self.asked.append((target, timeout_s))
        if self.error:
            raise self.error
        return "other"


def test_a_stop_does_not_depend_on_the_hand_over():
    alone, failing, serving = Raft({}), Raft({"x": {}}, TransferFailedError("no")), Raft({"x": {}})
    for raft in (alone, failing, serving):
        asyncio.run(hand_over(raft))
    assert (alone.asked, failing.asked, serving.asked) == ([], [(None, 0.5)], [(None, 0.5)])


def look_for_room(raft, full, rooms):
    """Lets a leader look a few times; returns whom it asked to lead."""

    async def run():
        async def has_room(peer):
            return rooms[peer]

        looking = asyncio.ensure_future(leave_full_disk(raft, lambda: not full, has_room, 0.001))
        for _ in range(10):
            await asyncio.sleep(0.001)
            if raft.asked:
                break
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)

    asyncio.run(run())
    return [target for target, _ in raft.asked[:2]]


PEERS = {
    "a-1": {"connected": 1, "match_index": 5},
    "a-2": {"connected": 1, "match_index": 9},
    "a-3": {"connected": 0, "match_index": 9},
}


@pytest.mark.parametrize(
    ("full", "rooms", "asked"),
    [
        (True, {"a-1": True, "a-2": True}, ["a-2"]),
        (True, {"a-1": True, "a-2": False}, ["a-1"]),
        (True, {"a-1": False, "a-2": False}, []),
        (False, {"a-1": True, "a-2": True}, []),
    ],
)
def test_a_leader_without_room_hands_over_to_one_that_has_some(full, rooms, asked):
    assert look_for_room(Raft(PEERS), full, rooms) == asked


def test_the_next_is_asked_when_one_does_not_take_over():
    raft = Raft(PEERS, TransferFailedError("no"))
    assert look_for_room(raft, True, {"a-1": True, "a-2": True}) == ["a-2", "a-1"]


def test_a_leader_needs_room_for_a_new_file_of_the_log():
    gate = WriteGate(None, disk_free_min_bytes=100, pending_bytes_max=1)
    assert gate.has_room_to_lead
    gate.observe_disk(199)
    assert (gate.has_room_to_lead, gate.is_disk_full) == (False, False)
    gate.observe_disk(200)
    assert gate.has_room_to_lead
