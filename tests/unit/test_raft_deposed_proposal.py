"""A leader that a message has just deposed refuses everything before its listeners know."""

from __future__ import annotations

from typing import Any

import pytest

from dledger.errors import NotLeaderError
from dledger.raft.node import RaftNode
from tests.support.raft_group import RaftGroup
from tests.support.virtual_loop import run_virtual


def recording(group: RaftGroup, sender: str, receiver: str | None) -> list[dict[str, Any]]:
    """Returns the list in which the messages of one replica (to one other) will appear."""
    held: list[dict[str, Any]] = []
    transport = group.transports[sender]
    send = transport.send

    def record(peer_id: str, message: dict[str, Any]) -> bool:
        if receiver in (None, peer_id):
            held.append(message)
        return send(peer_id, message)

    transport.send = record  # type: ignore[method-assign]
    return held


async def deposed(group: RaftGroup) -> RaftNode:
    """Returns a leader that has this moment taken the first message of its successor."""
    await group.start()
    old = await group.serving_leader()
    others = [node for node in group.nodes.values() if node is not old]
    group.network.isolate(old.replica_id)
    await group.wait(lambda: any(node.is_serving for node in others))
    (new,) = [node for node in others if node.is_serving]
    held = recording(group, new.replica_id, old.replica_id)
    await group.wait(lambda: held)
    assert old.is_serving
    old.on_message(new.replica_id, held[0])
    return old


def test_a_proposal_in_the_turn_in_which_the_leader_is_deposed() -> None:
    """It was an InvariantError that ended the process, though nothing was wrong."""

    async def main() -> None:
        group = RaftGroup(3)
        old = await deposed(group)
        answers: list[object] = []
        with pytest.raises(NotLeaderError):
            old.propose(b"\x10late", lambda *answer: answers.append(answer))
        assert not old.is_serving
        assert not answers
        group.network.heal()
        await group.put(b"after")
        await group.converged()
        assert group.fatal == {}
        await group.stop()

    run_virtual(main())


def test_a_read_barrier_in_the_turn_in_which_the_leader_is_deposed() -> None:
    """It sent appends as the leader of the term in which another one leads."""

    async def main() -> None:
        group = RaftGroup(3)
        old = await deposed(group)
        sent = recording(group, old.replica_id, None)
        with pytest.raises(NotLeaderError):
            await old.read_barrier()
        assert [message for message in sent if message["type"] == "append_entries"] == []
        group.network.heal()
        await group.put(b"after")
        await group.converged()
        assert group.fatal == {}
        await group.stop()

    run_virtual(main())
