"""What brokers are, where a client must know it before it asks for something."""

from __future__ import annotations

from dledger.client.session import ClientSession
from dledger.codes import RequestCode
from dledger.remoting.bodies import decode_kv_table

_OLD = ("V3", "V4")


class BrokerVersions:
    """Remembers the answer for each broker group; a group is not downgraded under a client."""

    def __init__(self, session: ClientSession) -> None:
        self._session = session
        self._is_old: dict[str, bool] = {}

    async def is_before_5(self, broker_name: str) -> bool:
        """Whether a group's brokers are of Apache RocketMQ before 5.0.

        Raises:
            BrokerResponseError, ConnectFailedError, ConnectionLostError, RequestTimeoutError: No
                answer.
        """
        known = self._is_old.get(broker_name)
        if known is None:
            response = await self._session.call_leader(
                broker_name, RequestCode.GET_BROKER_RUNTIME_INFO
            )
            told = decode_kv_table(response.body)
            is_foreign = "raftServing" not in told
            known = is_foreign and told.get("brokerVersionDesc", "").startswith(_OLD)
            self._is_old[broker_name] = known
        return known
