"""A leader that a message has just deposed refuses proposals before its listeners know."""

from __future__ import annotations

from typing import Any

import pytest

from dledger.errors import NotLeaderError
from tests.support.raft_group import RaftGroup
from tests.support.virtual_loop import run_virtual


def test_a_proposal_in_the_turn_in_which_the_leader_is_deposed() -> None:
    """It was an InvariantError that ended the process, though nothing was wrong."""

    async def main() -> None:
        group = RaftGroup(3)
        await group.start()
        old = await group.serving_leader()
        others = [node for node in group.nodes.values() if node is not old]
        group.network.isolate(old.replica_id)
        await group.wait(lambda: any(node.is_serving for node in others))
        (new,) = [node for node in others if node.is_serving]
        assert old.is_serving
        held: list[dict[str, Any]] = []
        transport = group.transports[new.replica_id]
        send = transport.send

        def recording(peer_id: str, message: dict[str, Any]) -> bool:
            if peer_id == old.replica_id:
                held.append(message)
            return send(peer_id, message)

        transport.send = recording  # type: ignore[method-assign]
        await group.wait(lambda: held)
        assert old.is_serving
        old.on_message(new.replica_id, held[0])
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
