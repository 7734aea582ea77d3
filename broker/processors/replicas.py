"""The replicas of this group, managed: 30001."""

from __future__ import annotations

from broker.context import BrokerContext
from dledger.remoting.commands import Command
from dledger.remoting.headers import TransferLeaderHeader, TransferLeaderResponse, to_ext
from dledger.remoting.server import Connection


class ReplicaProcessor:
    """Moves the leadership between replicas."""

    def __init__(self, context: BrokerContext) -> None:
        self._context = context

    async def transfer_leader(self, connection: Connection, command: Command) -> None:
        """30001: hands the leadership to a replica. Serving leader only."""
        target = command.header(TransferLeaderHeader).replica_id or None
        leader = await self._context.raft.transfer_leadership(target)
        answer = TransferLeaderResponse(replica_id=leader or "")
        connection.reply(command, 0, to_ext(answer))
