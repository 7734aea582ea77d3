"""A leader without room for writes lets a replica lead that has some."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from broker.leadership import LeadershipControl
from dledger.codes import RequestCode, ResponseCode
from dledger.errors import DLedgerError
from dledger.remoting.bodies import decode_kv_table
from dledger.remoting.client import RemotingClient

logger = logging.getLogger(__name__)

ASK_TIMEOUT_S = 0.5
TRANSFER_S = 1.0


class RoomQuestions:
    """Asks other replicas whether they have room, as any client may."""

    def __init__(
        self, client: RemotingClient, address_of: Callable[[str | None], str | None]
    ) -> None:
        self._client = client
        self._address_of = address_of

    async def has_room(self, replica_id: str) -> bool:
        """Whether a replica says that its disk takes writes; False without an answer."""
        address = self._address_of(replica_id)
        if address is None:
            return False
        try:
            answer = await self._client.request(
                address, RequestCode.GET_BROKER_RUNTIME_INFO, timeout_s=ASK_TIMEOUT_S
            )
            if answer.code != ResponseCode.SUCCESS:
                return False
            return decode_kv_table(bytes(answer.body)).get("roomToLead") == "true"
        except DLedgerError:
            return False


async def leave_full_disk(
    raft: LeadershipControl,
    may_lead: Callable[[], bool],
    has_room: Callable[[str], Awaitable[bool]],
    interval_s: float,
) -> None:
    """Looks for a better leader whenever this one lacks room. Runs for ever.

    If nobody has room it stays as it is: writes are refused, definitely, and reads go on.

    Args:
        raft: Of this replica.
        may_lead: Whether this replica has room for what a leader must write.
        has_room: Asks a replica.
        interval_s: Between two looks.
    """
    while True:
        await asyncio.sleep(interval_s)
        if raft.is_serving and not may_lead():
            await _hand_over(raft, has_room)


async def _hand_over(raft: LeadershipControl, has_room: Callable[[str], Awaitable[bool]]) -> None:
    progress = raft.peer_progress()
    connected = [peer for peer, theirs in progress.items() if theirs["connected"]]
    # The one that has most of the log is ready first.
    for peer in sorted(connected, key=lambda peer: -progress[peer]["match_index"]):
        if not await has_room(peer) or not raft.is_serving:
            continue
        logger.warning("the disk is full: handing the leadership to %s", peer)
        try:
            await raft.transfer_leadership(peer, timeout_s=TRANSFER_S)
        except DLedgerError as error:
            logger.info("leadership stays: wanted=%s reason=%s", peer, error)
        else:
            return
