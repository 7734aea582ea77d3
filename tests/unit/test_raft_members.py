"""Membership changes in groups of real nodes on virtual time."""

from __future__ import annotations

import asyncio

import pytest

from dledger.errors import (
    ChangeRefusedError,
    CommitTimeoutError,
    DiskFailureError,
    DiskFullError,
    DLedgerError,
    InvalidParameterError,
    LeadershipLostError,
    NotLeaderError,
    ReplicaRemovedError,
    ReplicaReplacedError,
    StoreError,
)
from dledger.raft.configuration import Configuration, encode_entry
from dledger.raft.engine import Engine
from dledger.raft.membership import Membership
from dledger.raft.node import RaftNode
from dledger.raft.protocols import Identity
from dledger.raft.upstream import FOLLOWER
from tests.support.one_replica import OurReplica, group_of
from tests.support.raft_group import RaftGroup
from tests.support.virtual_loop import run_virtual


async def change(group: RaftGroup, what: str, *arguments: str) -> Configuration:
    """Asks whoever leads until the change is made, as the command line does."""
    deadline = group.loop.time() + 20
    while True:
        leader = await group.serving_leader()
        try:
            result = await getattr(leader.changes, what)(*arguments)
            assert isinstance(result, Configuration)
            return result
        except (NotLeaderError, LeadershipLostError):
            assert group.loop.time() < deadline
            await asyncio.sleep(0.02)


async def add(group: RaftGroup, name: str) -> None:
    """Adds a replica and starts it with what the leader said."""
    group.prepare(name, await change(group, "add", name, f"{name}:1", f"{name}:2"))
    await group.start([name])


async def voter(group: RaftGroup, name: str, timeout_s: float = 20.0) -> None:
    """Waits until all running replicas count a replica."""
    await group.wait(
        lambda: all(name in node.configuration.voters for node in group.nodes.values()), timeout_s
    )


def follower_of(group: RaftGroup, leader: RaftNode) -> str:
    return next(name for name in leader.configuration.voters if name != leader.replica_id)


def test_a_group_grows_from_one_to_five_and_shrinks_again() -> None:
    async def main() -> None:
        group = RaftGroup(1)
        await group.start()
        await group.put(b"first")
        for number in range(1, 5):
            await add(group, f"r{number}")
            await voter(group, f"r{number}")
            await group.put(b"with %d" % number)
        leader = await group.serving_leader()
        assert leader.configuration.voters == ("r0", "r1", "r2", "r3", "r4")
        await group.converged()
        group.crash("r1")
        group.crash("r2")
        await group.put(b"three of five")
        await group.start(["r1", "r2"])
        await group.converged()
        for name in ("r0", "r1", "r2", "r3"):
            await change(group, "remove", name)
            await group.wait(lambda name=name: name in group.fatal)  # type: ignore[misc]
            assert isinstance(group.fatal.pop(name), ReplicaRemovedError)
            group.crash(name)
            await group.put(b"without " + name.encode())
        assert (await group.serving_leader()).configuration.voters == ("r4",)
        await group.stop()

    run_virtual(main())


def test_a_learner_gets_everything_but_neither_counts_nor_votes() -> None:
    async def main() -> None:
        group = RaftGroup(3)
        await group.start()
        group.prepare("r3", await change(group, "add", "r3", "r3:1", "r3:2"))
        leader = await group.serving_leader()
        leader.changes.advance = lambda: None  # type: ignore[method-assign]
        await group.start(["r3"])
        await group.put(b"x")
        await group.converged()
        # Two of three down: with the learner it would be two of four that agree.
        for name in group.ids:
            if name not in ("r3", leader.replica_id):
                group.crash(name)
        outcome: list[object] = []
        leader.propose(b"\x10y", lambda _result, error: outcome.append(error))
        await group.wait(lambda: not leader.is_serving, 5.0)  # check quorum does not count it
        assert isinstance(outcome[0], (LeadershipLostError, CommitTimeoutError))
        term = max(node.term for node in group.nodes.values())
        await asyncio.sleep(5.0)
        assert group.leader() is None
        assert max(node.term for node in group.nodes.values()) == term  # nobody stood for election
        del leader.changes.advance
        await group.start([name for name in group.ids if name not in group.nodes])
        await group.put(b"z")
        await voter(group, "r3")
        await group.converged()
        assert not group.fatal
        await group.stop()

    run_virtual(main())


def test_a_learner_whose_leader_died_before_telling_it_of_its_promotion_votes() -> None:
    async def main() -> None:
        group = RaftGroup(2)
        await group.start()
        await add(group, "r2")
        leader = await group.serving_leader()
        other = follower_of(group, leader)
        await group.wait(lambda: "r2" in group.nodes["r2"].configuration.learners, poll_s=0.0005)
        # The learner hears nothing from here on, so that only the two know of the promotion.
        for name in (leader.replica_id, other):
            group.network.cut(name, "r2")
        term = leader.term
        changed = leader.configuration.with_promoted("r2")
        leader.propose_configuration(changed, lambda _result, _error: None)
        await group.wait(lambda: "r2" in group.nodes[other].configuration.voters)
        assert leader.term == term
        assert "r2" in group.nodes["r2"].configuration.learners
        group.crash(leader.replica_id)
        group.network.heal()
        await group.put(b"by two of three, one of whom does not know that it counts")
        assert "r2" in group.nodes["r2"].configuration.voters
        await group.stop()

    run_virtual(main())


def test_a_learner_that_does_not_catch_up_stays_one() -> None:
    async def main() -> None:
        group = RaftGroup(3)
        await group.start()
        await change(group, "add", "r3", "r3:1", "r3:2")  # and it is never started
        await asyncio.sleep(5)
        leader = await group.serving_leader()
        assert leader.configuration.learners == ("r3",)
        await group.put(b"x")
        await change(group, "remove", "r3")
        assert (await group.serving_leader()).configuration.learners == ()
        await group.stop()

    run_virtual(main())


def test_a_leader_that_is_removed_hands_over_first_and_is_told_in_the_end() -> None:
    async def main() -> None:
        group = RaftGroup(3)
        await group.start()
        await group.put(b"before")
        old = await group.serving_leader()
        with pytest.raises(NotLeaderError):
            await old.changes.remove(old.replica_id)
        new = await group.serving_leader()
        assert new is not old
        await change(group, "remove", old.replica_id)
        await group.wait(lambda: old.replica_id in group.fatal)
        assert isinstance(group.fatal[old.replica_id], ReplicaRemovedError)
        term = new.term
        await asyncio.sleep(3.0)
        assert new.is_serving
        assert new.term == term  # not disturbed by who is gone
        group.crash(old.replica_id)
        await group.put(b"by two")
        await group.converged()
        await group.stop()

    run_virtual(main())


def test_a_replica_that_was_down_when_it_was_removed_learns_it_when_it_is_back() -> None:
    async def main() -> None:
        group = RaftGroup(3)
        await group.start()
        leader = await group.serving_leader()
        gone = follower_of(group, leader)
        group.crash(gone)
        await change(group, "remove", gone)
        term = leader.term
        await group.start([gone])
        await group.wait(lambda: gone in group.fatal)
        assert isinstance(group.fatal[gone], ReplicaRemovedError)
        with pytest.raises(ReplicaRemovedError):  # and remembers it
            await group.start([gone])
        await asyncio.sleep(2)
        assert leader.is_serving
        assert leader.term == term
        await group.stop()

    run_virtual(main())


def test_refusals() -> None:
    async def main() -> None:
        group = RaftGroup(3)
        await group.start()
        leader = await group.serving_leader()
        follower = follower_of(group, leader)
        with pytest.raises(NotLeaderError):
            await group.nodes[follower].changes.remove(follower)
        with pytest.raises(ChangeRefusedError, match="not a replica"):
            await leader.changes.remove("r9")
        with pytest.raises(ChangeRefusedError, match="already"):
            await leader.changes.add("r1", "h:1", "h:2")
        with pytest.raises(InvalidParameterError):
            await leader.changes.add("r3", "", "h:2")
        # One at a time.
        first = asyncio.ensure_future(leader.changes.add("r3", "h:1", "h:2"))
        await asyncio.sleep(0)
        with pytest.raises(ChangeRefusedError, match="under way"):
            await leader.changes.remove(follower)
        await first
        # Never below a majority that can be reached.
        group.crash(follower)
        other = next(
            name
            for name in leader.configuration.voters
            if name not in (leader.replica_id, follower)
        )
        with pytest.raises(ChangeRefusedError, match="lose its majority"):
            await leader.changes.remove(other)
        with pytest.raises(InvalidParameterError, match="not a voting replica"):
            await leader.transfer_leadership("r3")
        await change(group, "remove", follower)
        await group.put(b"by two of two")
        await group.stop()

    run_virtual(main())


def test_an_uncommitted_change_is_taken_back_with_its_entry() -> None:
    async def main() -> None:
        group = RaftGroup(3)
        await group.start()
        await group.put(b"agreed")
        old = await group.serving_leader()
        gone = follower_of(group, old)
        group.network.isolate(old.replica_id)
        errors: list[DLedgerError | None] = []
        old.propose_configuration(old.configuration.without(gone), lambda _r, e: errors.append(e))
        assert gone not in old.configuration.voters  # counts from the moment it is appended
        await group.wait(lambda: errors)
        assert isinstance(errors[0], LeadershipLostError)
        await group.put(b"by the others")
        group.network.heal()
        await group.converged()
        assert all(len(node.configuration.voters) == 3 for node in group.nodes.values())
        group.crash(next(name for name in group.nodes if name not in (old.replica_id, gone)))
        await group.put(b"with the one that was to be removed")
        await group.stop()

    run_virtual(main())


def test_the_configuration_survives_restarts_and_loss_of_power() -> None:
    async def main() -> None:
        group = RaftGroup(3)
        await group.start()
        await add(group, "r3")
        await voter(group, "r3")
        await change(group, "remove", "r0")
        await group.wait(lambda: "r0" in group.fatal)
        for name in list(group.ids):
            group.crash(name, power_loss=True)
        await group.start(["r1", "r2", "r3"])
        leader = await group.serving_leader()
        assert leader.configuration.voters == ("r1", "r2", "r3")
        await group.put(b"after")
        await group.converged()
        await group.stop()

    run_virtual(main())


def test_a_configuration_travels_with_a_snapshot() -> None:
    async def main() -> None:
        group = RaftGroup(3, with_snapshots=True)
        await group.start()
        await group.put(b"before")
        await group.converged()
        leader = await group.serving_leader()
        behind = follower_of(group, leader)
        group.crash(behind)
        gone = next(n for n in group.ids if n not in (behind, leader.replica_id))
        await add(group, "r3")
        await voter(group, "r3")
        await change(group, "remove", gone)
        for number in range(50):
            await group.put(b"%d" % number)
        for name in group.nodes:
            if name != gone:
                group.snapshots[name].take(keep=5)
        group.crash(gone)
        await group.start([behind])
        await group.converged()
        assert group.snapshots[behind].installed == 1
        assert group.nodes[behind].configuration.index < group.logs[behind].first_index
        assert group.nodes[behind].configuration.voters == leader.configuration.voters
        group.crash(behind)
        await group.start([behind])
        assert group.nodes[behind].configuration.voters == leader.configuration.voters
        # A new one starts from a snapshot too.
        await add(group, "r4")
        await voter(group, "r4")
        assert group.snapshots["r4"].installed == 1
        await group.converged()
        await group.stop()

    run_virtual(main())


def test_an_uncommitted_change_is_taken_back_when_a_snapshot_replaces_its_entry() -> None:
    async def main() -> None:
        group = RaftGroup(3, with_snapshots=True)
        await group.start()
        await group.put(b"agreed")
        old = await group.serving_leader()
        gone = follower_of(group, old)
        group.network.isolate(old.replica_id)
        errors: list[DLedgerError | None] = []
        old.propose_configuration(old.configuration.without(gone), lambda _r, e: errors.append(e))
        await group.wait(lambda: errors)
        for number in range(50):
            await group.put(b"%d" % number)
        for name in group.nodes:
            if name != old.replica_id:
                group.snapshots[name].take(keep=5)
        group.network.heal()
        await group.converged()
        assert group.snapshots[old.replica_id].installed == 1
        assert not group.fatal  # nobody was told that it was removed
        assert all(node.configuration == group.bootstrap for node in group.nodes.values())
        group.crash(old.replica_id)
        await group.start([old.replica_id])
        assert old.configuration == group.bootstrap
        await group.stop()

    run_virtual(main())


def test_a_rebuilt_replica_is_somebody_else_and_whole() -> None:
    async def main() -> None:
        group = RaftGroup(3)
        await group.start()
        await group.put(b"before")
        await group.converged()
        leader = await group.serving_leader()
        lost = follower_of(group, leader)
        group.crash(lost)
        group.wipe(lost)
        # Under its old name it is refused.
        await group.start([lost])
        await group.wait(lambda: lost in group.fatal)
        assert isinstance(group.fatal.pop(lost), ReplicaReplacedError)
        group.crash(lost)
        await change(group, "remove", lost)
        group.wipe(lost)
        await add(group, lost)
        await voter(group, lost)
        assert group.nodes[lost].identity.incarnation == 1
        assert group.nodes[lost].configuration.member(lost).number == int(lost[1:])  # type: ignore[union-attr]
        await group.put(b"after")
        await group.converged()
        await (await group.serving_leader()).transfer_leadership(lost)
        await group.put(b"led by it")
        await group.converged()
        await group.stop()

    run_virtual(main())


@pytest.mark.parametrize("is_new", [False, True])
def test_one_that_is_too_far_behind_hears_a_leader_that_it_cannot_know(is_new: bool) -> None:
    """Found by the simulation (seed 1033): it refused the only one that could tell it more."""

    async def main() -> None:
        group = RaftGroup(5)
        await group.start()
        await group.put(b"before")
        await group.converged()
        behind = follower_of(group, await group.serving_leader())
        group.crash(behind)
        first = (await group.serving_leader()).replica_id
        rebuilt = next(name for name in group.ids if name not in (behind, first))
        group.crash(rebuilt)
        await change(group, "remove", rebuilt)
        await add(group, rebuilt)
        await voter(group, rebuilt)
        await add(group, "r5")
        await voter(group, "r5")
        leader = "r5" if is_new else rebuilt
        await (await group.serving_leader()).transfer_leadership(leader)
        await group.wait(lambda: group.nodes[leader].is_serving)
        await group.start([behind])
        await group.put(b"led by " + leader.encode())
        await group.converged()
        assert group.nodes[behind].configuration.member("r5") is not None
        assert not group.fatal
        await group.stop()

    run_virtual(main())


def meet_the_rebuilt(replica: OurReplica) -> None:
    """The other two of three left the group and came back; only this replica does not know."""
    for incarnation, name in enumerate(("b", "c"), start=1):
        peer = Identity(name, incarnation, f"new-{name}", f"{name}:2")
        assert replica.membership.admit(peer)
        replica.engine.peers_changed()
        replica.engine.peer_up(name)


def test_who_lives_anew_still_counts_where_that_is_not_known_yet() -> None:
    """Else a replica that is far behind would be a majority of itself, and lead alone."""
    replica = OurReplica()
    meet_the_rebuilt(replica)
    for _ in range(20):
        replica.clock.advance(1.0)
        replica.tick()
    assert replica.engine.raft_state() == FOLLOWER
    assert replica.engine.raft_term() == 0


def test_a_leader_counts_who_lives_anew_as_before() -> None:
    replica = OurReplica()
    replica.lead()
    replica.reply("b", replica.memory_log.last_index + 1, success=True)
    replica.tick()
    committed = replica.engine.commit_index()
    assert committed == replica.memory_log.last_index
    meet_the_rebuilt(replica)
    assert not replica.engine.round_confirmed(replica.engine.begin_round())
    replica.propose(b"alone")
    replica.tick()
    assert replica.engine.commit_index() == committed
    assert replica.engine.raft_state() == FOLLOWER


def test_who_does_not_vote_does_not_stand_for_election_either() -> None:
    """The library looks at the clock once more after us: the time may be over just then."""
    replica = OurReplica()
    replica.membership.append(Configuration(members=group_of("b", "c").members).placed(1, 0))
    replica.engine.peers_changed()
    replica.clock.advance(5.0)
    replica.engine._onTick(0)
    assert replica.engine.raft_state() == FOLLOWER
    assert replica.engine.raft_term() == 0


def test_a_single_voter_goes_on_while_more_is_being_written() -> None:
    """Its disk is always a little behind; what it has is committed nevertheless."""
    replica = OurReplica(())
    replica.clock.advance(5.0)
    replica.tick()
    replica.sync()
    learning = replica.engine.configuration().with_learner("b", "b:1", "b:2")
    replica.engine.propose_configuration(learning)
    replica.engine.peer_up("b")
    replica.sync()
    replica.tick()
    assert replica.membership.is_settled
    replica.durable = False
    replica.propose(b"durable soon")
    durable = replica.memory_log.last_index
    for number in range(5):
        replica.sync()
        replica.propose(b"%d" % number)  # written, not synced
        replica.tick()
        assert replica.engine.commit_index() == replica.memory_log.durable_index >= durable
        assert replica.memory_log.durable_index < replica.memory_log.last_index


def test_a_change_taken_back_does_not_count_even_if_that_cannot_be_stored() -> None:
    replica = OurReplica()
    changed = replica.engine.configuration().without("c")
    replica.append("b", 1, (1, 0), [(2, 1, encode_entry(changed))])
    assert replica.engine.voter_ids() == ["b"]
    save = replica.memory_log.save_members

    def full(_content: bytes) -> None:
        raise DiskFullError("no space (test)")

    replica.memory_log.save_members = full  # type: ignore[method-assign]
    replica.append("c", 2, (1, 0), [(2, 2, b"\x10x")])
    assert replica.engine.configuration().voters == ("a", "b", "c")
    assert replica.engine.voter_ids() == ["b", "c"]
    # Nothing takes the place of what the disk still has a change for: a start must be able to tell.
    replica.append("c", 2, (1, 0), [(2, 2, b"\x10x")])
    assert replica.log() == [(1, 0)]
    replica.memory_log.save_members = save  # type: ignore[method-assign]
    replica.append("c", 2, (1, 0), [(2, 2, b"\x10x")])
    assert replica.log()[-1] == (2, 2)
    assert reopened(replica).is_settled
    # Also when what stood there has been dropped at the front, and cannot tell any more.
    replica.memory_log.first_index, replica.memory_log.entries = 3, []
    assert reopened(replica).current.voters == ("a", "b", "c")


def reopened(replica: OurReplica) -> Membership:
    """Returns what a start would find."""
    return Membership(replica.memory_log, "a", group_of("a", "b", "c"), directory_id="not used")


@pytest.mark.parametrize("error", [DiskFullError("full (test)"), DiskFailureError("EIO (test)")])
def test_nobody_leads_or_goes_on_by_members_that_its_disk_does_not_have(error: StoreError) -> None:
    replica = OurReplica()
    changed = replica.engine.configuration().without("c")
    replica.append("b", 1, (1, 0), [(2, 1, encode_entry(changed))])

    def broken(_content: bytes) -> None:
        raise error

    replica.memory_log.save_members = broken  # type: ignore[method-assign]
    if isinstance(error, DiskFailureError):
        with pytest.raises(DiskFailureError):  # the node stops
            replica.append("c", 2, (1, 0), [(2, 2, b"\x10x")])
        return
    replica.append("c", 2, (1, 0), [(2, 2, b"\x10x")])
    replica.engine._SyncObj__onBecomeLeader()
    assert replica.engine.raft_state() == FOLLOWER
    assert replica.log() == [(1, 0)]


class CountsByTheOldConfiguration(Engine):
    """What must not be: a change of the group does not change who counts."""

    def _members_changed(self) -> None:
        before = set(self._SyncObj__otherNodes)
        super()._members_changed()
        if before:
            self._SyncObj__otherNodes = before


@pytest.mark.parametrize("engine_class", [Engine, CountsByTheOldConfiguration])
def test_two_of_four_are_not_enough(engine_class: type[Engine]) -> None:
    """The planted fault shows: a learner that was promoted does not count towards the majority."""

    async def main() -> None:
        group = RaftGroup(3, engine_class=engine_class)
        await group.start()
        await add(group, "r3")
        await voter(group, "r3")
        leader = await group.serving_leader()
        others = [n for n in leader.configuration.voters if n not in (leader.replica_id, "r3")]
        group.crash(others[0])
        group.crash("r3")
        outcome: list[object] = []
        leader.propose(b"\x10by two of four", lambda _result, error: outcome.append(error))
        await asyncio.sleep(0.5)
        assert outcome == ([] if engine_class is Engine else [None])
        await group.stop()

    run_virtual(main())
