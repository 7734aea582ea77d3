"""The configuration of a group and what one replica remembers of it: pure, over a log in memory."""

from __future__ import annotations

import pytest

from dledger.errors import (
    ChangeRefusedError,
    DiskFullError,
    InvariantError,
    PeerRefusedError,
    RemoteProtocolError,
    ReplicaRemovedError,
    ReplicaReplacedError,
    StoreError,
)
from dledger.raft.configuration import (
    MEMBERS_MAX,
    Configuration,
    decode_configuration,
    decode_entry,
    encode_configuration,
    encode_entry,
)
from dledger.raft.membership import Membership
from dledger.raft.protocols import Identity
from tests.support.memory_log import MemoryLog
from tests.support.one_replica import group_of

THREE = group_of("a", "b", "c")


def membership(log: MemoryLog, name: str = "a", incarnation: int = 0) -> Membership:
    return Membership(log, name, THREE, incarnation=incarnation, directory_id=f"directory-{name}")


def log_with(*terms: int) -> MemoryLog:
    log = MemoryLog()
    for index, term in enumerate(terms, start=1):
        log.append(index, term, b"\x10x")
    return log


# --- the configuration itself -------------------------------------------------------------------


def test_one_replica_at_a_time_and_neighbouring_majorities_share_a_voter() -> None:
    learning = THREE.with_learner("d", "h:1", "h:2")
    assert learning.voters == THREE.voters
    assert learning.learners == ("d",)
    assert learning.majority == 2
    four = learning.with_promoted("d")
    assert four.voters == ("a", "b", "c", "d")
    assert four.majority == 3
    assert four.without("b").majority == 2
    # Majorities of neighbours: together more than the voters of both.
    for before, after in ((learning, four), (four, four.without("b")), (THREE, THREE.without("a"))):
        voters = set(before.voters) | set(after.voters)
        assert before.majority + after.majority > len(voters)


def test_an_incarnation_is_never_given_twice() -> None:
    once = THREE.without("c").with_learner("c", "h:1", "h:2")
    again = once.without("c").with_learner("c", "h:1", "h:2")
    assert [found.member("c").incarnation for found in (THREE, once, again)] == [0, 1, 2]  # type: ignore[union-attr]
    assert again.has("c", 2)
    assert not again.has("c", 1)
    assert again.was_removed("c", 0)
    assert again.was_removed("c", 1)
    # One that this configuration has not heard of yet was not removed.
    assert not once.was_removed("c", 2)
    assert not again.was_removed("e", 3)


def test_numbers_are_unique_and_a_rebuilt_replica_gets_its_own_back() -> None:
    assert THREE.without("b").with_learner("b", "h:1", "h:2").member("b").number == 1  # type: ignore[union-attr]
    assert THREE.with_learner("d", "h:1", "h:2").member("d").number == 3  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda: THREE.with_learner("b", "h:1", "h:2"), "b is a replica of the group already"),
        (lambda: THREE.with_learner("d", "h:1", "127.0.0.1:2"), "b has the address 127.0.0.1:2"),
        (lambda: THREE.with_promoted("b"), "b is not a learner"),
        (lambda: THREE.with_promoted("x"), "x is not a learner"),
        (lambda: THREE.without("x"), "x is not a replica of the group; it has a, b, c"),
        (lambda: group_of("a").without("a"), "the only voter"),
        (
            lambda: group_of("a").with_learner("b", "h:1", "h:2").without("a"),
            "the only voter",
        ),
        (
            lambda: group_of(*(f"r{n}" for n in range(MEMBERS_MAX))).with_learner("x", "a", "b"),
            "at most 9 replicas",
        ),
    ],
)
def test_what_cannot_be_is_refused(change: object, text: str) -> None:
    with pytest.raises(ChangeRefusedError, match=text):
        change()  # type: ignore[operator]


def test_codecs() -> None:
    changed = THREE.with_learner("d", "h:1", "h:2")
    body = encode_entry(changed)
    assert body[0] < 16
    assert decode_entry(body, 7, 3) == changed.placed(7, 3)
    assert decode_configuration(encode_configuration(changed.placed(7, 3))).index == 7
    with pytest.raises(RemoteProtocolError):
        decode_configuration(b"\x93nonsense")
    with pytest.raises(InvariantError):
        decode_entry(body[:-3], 7, 3)


# --- what a replica remembers -------------------------------------------------------------------


def test_it_counts_once_stored_and_survives_with_its_entry() -> None:
    log = log_with(0, 1, 1)
    found = membership(log)
    changed = THREE.with_learner("d", "h:1", "h:2").placed(4, 1)
    found.append(changed)
    assert found.current == changed
    assert not found.is_settled
    # Died before the entry was written.
    assert membership(log).current == THREE
    # Died after.
    found = membership(log)
    found.append(changed)
    log.append(4, 1, encode_entry(changed))
    found = membership(log)
    assert found.current == changed
    assert found.committed == THREE
    assert found.settle(4)
    assert found.committed == changed
    assert not found.settle(5)


def test_a_truncated_one_gives_way_to_the_one_before() -> None:
    log = log_with(0, 1, 1)
    found = membership(log)
    found.append(THREE.with_learner("d", "h:1", "h:2").placed(4, 1))
    log.append(4, 1, b"\x04x")
    log.truncate_from(4)
    assert found.truncated(4)
    assert found.current == THREE
    assert not found.truncated(3)
    # Also when the process died between the two, and another entry took the place.
    found.append(THREE.with_learner("d", "h:1", "h:2").placed(4, 1))
    log.append(4, 2, b"\x10x")
    assert membership(log).current == THREE
    # And the front of the log has passed it since.
    log.append(5, 2, b"\x10x")
    log.drop_before(5)
    assert membership(log).current == THREE


def test_a_committed_one_stays_when_its_entry_is_dropped_at_the_front() -> None:
    log = log_with(0, 1, 1)
    found = membership(log)
    changed = THREE.with_learner("d", "h:1", "h:2").placed(4, 1)
    found.append(changed)
    for index in (4, 5, 6):
        log.append(index, 1, b"\x10x")
    log.drop_before(6)
    assert membership(log).current == changed


def test_one_that_came_with_a_snapshot_stays_ahead_of_the_log() -> None:
    log = log_with(0, 1, 1)
    found = membership(log)
    found.append(THREE.with_learner("x", "h:1", "h:2").placed(3, 1))  # never to be committed
    later = THREE.without("b").placed(90, 7)
    found.install(later)
    assert found.current == later
    assert membership(log).current == later
    # The log that follows holds earlier ones; they change nothing any more.
    found.append(THREE.with_learner("d", "h:1", "h:2").placed(60, 5))
    assert found.current == later


def test_many_changes_at_once_take_no_more_room_than_one() -> None:
    """To a replica that was away for long they come in one append."""
    log = log_with(0, 1, 1)
    found = membership(log)
    found.append(THREE.with_learner("d", "h:1", "h:2").placed(4, 1))
    log.append(4, 1, b"\x04x")
    size = len(log.members or b"")
    for index in range(5, 300):
        placed = THREE.with_learner("d", "h:1", "h:2").placed(index, 1)
        before, found_before = found.current, found.committed
        found.append(placed)
        assert found.current == placed
        assert found.committed == before
        assert found_before.index < before.index
    assert len(log.members or b"") < 2 * size
    # The one before counts if the last is taken back.
    assert found.truncated(299)
    assert found.current.index == 298


def test_peers_of_both_sides_of_a_change_are_heard_until_it_is_committed() -> None:
    found = membership(log_with(0, 1, 1))
    found.append(THREE.without("c").placed(4, 1))
    assert list(found.peers()) == ["b", "c"]
    found.settle(4)
    assert list(found.peers()) == ["b"]


def test_a_full_disk_changes_nothing() -> None:
    log = log_with(0, 1, 1)
    found = membership(log)

    def full(_content: bytes) -> None:
        raise DiskFullError("no space (test)")

    log.save_members = full  # type: ignore[method-assign]
    with pytest.raises(DiskFullError):
        found.append(THREE.without("c").placed(4, 1))
    assert found.current == THREE
    assert found.is_settled
    found.install(THREE)  # known already
    with pytest.raises(DiskFullError):
        found.install(THREE.without("c").placed(90, 7))
    assert found.current == THREE
    assert found.committed == THREE


def test_addresses_may_change_by_hand_until_the_group_has_changed() -> None:
    log = log_with(0, 1, 1)
    membership(log)
    moved = Configuration(
        members=tuple(
            type(member)(id=member.id, number=member.number, raft_address=f"elsewhere:{number}")
            for number, member in enumerate(THREE.members)
        )
    )
    assert Membership(log, "a", moved, directory_id="x").current == moved
    membership(log).install(THREE.without("c").placed(4, 1))
    assert Membership(log, "a", moved, directory_id="x").current.index == 4


def test_the_directory_knows_whose_it_is() -> None:
    log = log_with(0)
    membership(log, incarnation=2)
    # What is asked for later does not count: the directory does.
    assert membership(log).identity == Identity("a", 2, "directory-a", "127.0.0.1:1")
    with pytest.raises(StoreError, match="belongs to replica a, not to b"):
        membership(log, "b")
    log.members = b"garbage"
    with pytest.raises(StoreError, match="not one of ours"):
        membership(log)


# --- who may talk to it -------------------------------------------------------------------------


def test_an_emptied_directory_under_an_old_name_is_refused_after_a_restart_too() -> None:
    log = log_with(0, 1)
    found = membership(log)
    found.admit(Identity("b", 0, "directory-b"))
    found.admit(Identity("b", 0, "directory-b"))
    for again in (found, membership(log)):
        with pytest.raises(ReplicaReplacedError, match="dledger replica rebuild"):
            again.admit(Identity("b", 0, "another"))


def test_strangers_the_removed_and_those_not_known_yet() -> None:
    found = membership(log_with(0, 1))
    with pytest.raises(PeerRefusedError):
        found.admit(Identity("x", 0, "directory-x"))
    found.admit(Identity("b", 0, "directory-b"))
    rebuilt = THREE.without("b").with_learner("b", "h:1", "h:2")
    with pytest.raises(PeerRefusedError):
        found.admit(Identity("b", 1, "new"))  # this replica has not heard of it yet
    found.append(THREE.without("b").placed(3, 1))
    found.admit(Identity("b", 0, "directory-b"))  # not committed: it may be the next leader
    found.append(rebuilt.placed(4, 1))
    found.settle(4)
    found.admit(Identity("b", 1, "new"))
    with pytest.raises(ReplicaRemovedError):
        found.admit(Identity("b", 0, "directory-b"))


def test_one_of_a_later_configuration_is_heard_and_dropped_once_that_is_known() -> None:
    found = membership(log_with(0, 1))
    assert not found.admit(Identity("b", 0, "directory-b", "h:2"))
    for peer in (Identity("b", 1, "new", "h:4"), Identity("x", 2, "directory-x", "h:6")):
        assert found.admit(peer)
        assert not found.admit(peer)
        assert found.places()[peer.replica_id] == (peer.incarnation, peer.raft_address)
    assert found.is_settled
    assert found.current == THREE  # they do not count
    later = THREE.without("b").with_learner("b", "h:3", "h:4").with_learner("x", "h:5", "h:6")
    found.append(later.without("x").placed(3, 1))
    assert list(found.peers()) == ["b", "c"]


def test_only_those_not_known_yet_take_a_guests_place() -> None:
    found = membership(log_with(0, 1))
    for number in range(MEMBERS_MAX):
        found.admit(Identity(f"x{number}", 1 + number, "directory", "h:4"))
    with pytest.raises(PeerRefusedError):
        found.admit(Identity("one more", 90, "directory", "h:6"))
    assert found.admit(Identity("x0", 91, "another", "h:4"))  # lives anew
    later = Configuration(members=THREE.members, next_incarnation=99)
    found.append(later.placed(3, 1))
    assert found.admit(Identity("one more", 99, "directory", "h:6"))


def test_who_could_not_be_remembered_was_not_met() -> None:
    log = log_with(0, 1)
    found = membership(log)
    save = log.save_members

    def full(_content: bytes) -> None:
        raise DiskFullError("no space (test)")

    log.save_members = full  # type: ignore[method-assign]
    for _ in range(2):
        with pytest.raises(DiskFullError):
            found.admit(Identity("b", 0, "directory-b"))
    log.save_members = save  # type: ignore[method-assign]
    found.admit(Identity("b", 0, "directory-b"))
    with pytest.raises(ReplicaReplacedError):
        membership(log).admit(Identity("b", 0, "another"))


def test_who_is_fenced_stays_fenced() -> None:
    log = log_with(0, 1)
    membership(log).fence("removed from the group")
    with pytest.raises(ReplicaRemovedError, match="removed from the group"):
        membership(log)
