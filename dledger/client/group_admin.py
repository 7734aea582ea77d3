"""The part of the admin client that is about the replicas of a broker group."""

from __future__ import annotations

from collections.abc import Sequence

from dledger.client.session import ClientSession
from dledger.codes import RequestCode
from dledger.remoting.headers import (
    AddReplicaHeader,
    RemoveReplicaHeader,
    TransferLeaderHeader,
    TransferLeaderResponse,
)
from dledger.remoting.members import GroupConfiguration, decode_group_configuration


class GroupAdmin:
    """Looks after who belongs to a group and who leads it."""

    _session: ClientSession

    async def transfer_leader(self, broker_name: str, replica_id: str | None = None) -> str:
        """Hands the leadership of a broker group to one of its replicas.

        Args:
            broker_name: The group.
            replica_id: The replica; by default any that has the whole log.

        Returns:
            The replica that leads now; empty if the old leader does not know it yet.
        """
        await self._groups([broker_name])
        header = TransferLeaderHeader(replica_id=replica_id or "")
        answer = await self._session.call_leader(broker_name, RequestCode.TRANSFER_LEADER, header)
        return answer.header(TransferLeaderResponse).replica_id

    async def replicas(self, broker_name: str) -> GroupConfiguration:
        """Returns who belongs to a broker group, as its leader says."""
        await self._groups([broker_name])
        answer = await self._session.call_leader(broker_name, RequestCode.GET_REPLICAS)
        return decode_group_configuration(answer.body)

    async def add_replica(
        self, broker_name: str, replica_id: str, address: str, raft_address: str
    ) -> GroupConfiguration:
        """Adds a replica to a broker group: as a learner, which becomes a voter by itself.

        Its data directory must have been prepared for the incarnation that the answer gives it;
        the command line does that.

        Args:
            broker_name: The group.
            replica_id: A name that no replica of the group has.
            address: Where clients will reach it.
            raft_address: Where the other replicas will reach it.

        Returns:
            Who belongs to the group now.

        Raises:
            BrokerResponseError: Refused; nothing has changed. So also if an attempt before, of
                unknown outcome, has done it.
        """
        await self._groups([broker_name])
        header = AddReplicaHeader(replica_id=replica_id, address=address, raft_address=raft_address)
        answer = await self._session.call_leader(broker_name, RequestCode.ADD_REPLICA, header)
        return decode_group_configuration(answer.body)

    async def remove_replica(self, broker_name: str, replica_id: str) -> GroupConfiguration:
        """Removes a replica from a broker group, for good: its data is of no use any more.

        A leader hands the leadership over first.

        Returns, raises: as `add_replica`.
        """
        await self._groups([broker_name])
        header = RemoveReplicaHeader(replica_id=replica_id)
        answer = await self._session.call_leader(broker_name, RequestCode.REMOVE_REPLICA, header)
        return decode_group_configuration(answer.body)

    async def _groups(self, names: Sequence[str] | None) -> list[str]:
        raise NotImplementedError
