"""The replicas of this group, managed: 30001 to 30004."""

from __future__ import annotations

from broker.config import parse_address
from broker.context import BrokerContext
from broker.replication import describe
from dledger.errors import ConfigError, InvalidParameterError
from dledger.raft.configuration import Configuration
from dledger.remoting.commands import Command
from dledger.remoting.headers import (
    AddReplicaHeader,
    RemoveReplicaHeader,
    TransferLeaderHeader,
    TransferLeaderResponse,
    to_ext,
)
from dledger.remoting.members import encode_group_configuration
from dledger.remoting.server import Connection


class ReplicaProcessor:
    """Moves the leadership between replicas, and changes who they are."""

    def __init__(self, context: BrokerContext) -> None:
        self._context = context

    async def transfer_leader(self, connection: Connection, command: Command) -> None:
        """30001: hands the leadership to a replica. Serving leader only."""
        target = command.header(TransferLeaderHeader).replica_id or None
        leader = await self._context.raft.transfer_leadership(target)
        answer = TransferLeaderResponse(replica_id=leader or "")
        connection.reply(command, 0, to_ext(answer))

    async def add(self, connection: Connection, command: Command) -> None:
        """30002: adds a replica, which becomes a voter when it has caught up. Leader only."""
        header = command.header(AddReplicaHeader)
        for address in (header.address, header.raft_address):
            try:
                parse_address(address)
            except ConfigError as error:
                raise InvalidParameterError(str(error)) from error
        changes = self._context.raft.changes
        changed = await changes.add(header.replica_id, header.address, header.raft_address)
        self._answer(connection, command, changed)

    async def remove(self, connection: Connection, command: Command) -> None:
        """30003: removes a replica for good. Leader only; one that leads hands over first."""
        header = command.header(RemoveReplicaHeader)
        changed = await self._context.raft.changes.remove(header.replica_id)
        self._answer(connection, command, changed)

    def configuration(self, connection: Connection, command: Command) -> None:
        """30004: who belongs to the group. Leader only, for it knows best."""
        self._answer(connection, command, self._context.raft.configuration)

    def _answer(self, connection: Connection, command: Command, found: Configuration) -> None:
        connection.reply(command, body=encode_group_configuration(describe(found)))
