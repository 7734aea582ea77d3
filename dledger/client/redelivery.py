"""What happens to a message whose handler failed.

It goes back to the broker, which delivers it to the group again after a delay that grows with
every failure, and puts it among the dead letters after the last one. Where that cannot be (nobody
answers, a broadcasting consumer, or by choice), it stays in the consumer's window and is offered
to the handler again later: the group's offset does not move past it, so a crash loses nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from dledger.client.retry import backoff_s
from dledger.client.session import ClientSession
from dledger.client.tasks import TaskSet
from dledger.codes import DELAY_LEVELS_MS, RequestCode
from dledger.errors import DLedgerError
from dledger.message import Property, ReceivedMessage, Rejection
from dledger.remoting.headers import ConsumerSendBackHeader

logger = logging.getLogger(__name__)

_REASON_LENGTH_MAX = 512


class LocalRedelivery:
    """Offers failed messages again, after pauses that double up to a limit."""

    def __init__(self, first_s: float, most_s: float) -> None:
        self._first_s = first_s
        self._most_s = most_s

    def failed(self, message: ReceivedMessage) -> float:
        """Counts a failure in the message; returns the seconds until it comes again."""
        message.reconsume_times += 1
        return backoff_s(message.reconsume_times, self._first_s, self._most_s)


class BrokerRedelivery:
    """Hands failed messages back to the broker they came from."""

    def __init__(
        self, session: ClientSession, group: str, *, reconsume_max: int | None, timeout_s: float
    ) -> None:
        self._session = session
        self._group = group
        self._reconsume_max = reconsume_max
        self._timeout_s = timeout_s
        self._tasks = TaskSet()

    def spawn(
        self,
        message: ReceivedMessage,
        broker_name: str,
        rejection: Rejection,
        *,
        taken: Callable[[], None],
        kept: Callable[[], None],
    ) -> None:
        """Hands a message back in the background; calls `taken` or `kept` once. Loop only."""

        async def work() -> None:
            if await self.send_back(message, broker_name, rejection):
                taken()
            else:
                kept()

        self._tasks.spawn(work(), f"send back {self._group}")

    async def drain(self, timeout_s: float) -> None:
        """Waits for what is being handed back."""
        await self._tasks.drain(timeout_s)

    async def send_back(
        self, message: ReceivedMessage, broker_name: str, rejection: Rejection
    ) -> bool:
        """Hands a message back; returns whether the broker has it.

        After `False` it may have it all the same, and the message come twice.

        Durability: after `True` it is committed on a majority where it waits.
        """
        header = ConsumerSendBackHeader(
            physical_offset=message.physical_offset,
            group=self._group,
            delay_level=delay_level(rejection),
            origin_message_id=message.offset_message_id,
            origin_topic=message.properties.get(Property.RETRY_TOPIC, message.topic),
            max_reconsume_times=self._reconsume_max,
            reason=rejection.reason[:_REASON_LENGTH_MAX],
            delay_ms=None if rejection.dead_letter else rejection.delay_ms,
        )
        try:
            await self._session.call_leader(
                broker_name,
                RequestCode.CONSUMER_SEND_MESSAGE_BACK,
                header,
                timeout_s=self._timeout_s,
            )
        except DLedgerError as error:
            logger.warning(
                "message not handed back id=%s broker=%s error=%s",
                message.message_id,
                broker_name,
                error,
            )
            return False
        return True


def delay_level(rejection: Rejection) -> int:
    """Returns what a broker that knows only levels should do: the next level that is not shorter.

    0 lets the broker choose, -1 is the dead letters.
    """
    if rejection.dead_letter:
        return -1
    if rejection.delay_ms is None:
        return 0
    levels = [n for n, ms in enumerate(DELAY_LEVELS_MS, 1) if ms >= rejection.delay_ms]
    return levels[0] if levels else len(DELAY_LEVELS_MS)
