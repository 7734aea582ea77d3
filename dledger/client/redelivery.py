"""What happens to a message whose handler failed: pure.

For now the message stays in the consumer's window and is offered to the handler again later; the
group's offset does not move past it, so a crash loses nothing. Handing it back to the broker
(retry topic, delay levels, dead letters) takes this class's place without touching the reader.
"""

from __future__ import annotations

from dledger.client.retry import backoff_s
from dledger.message import ReceivedMessage


class LocalRedelivery:
    """Offers failed messages again, after pauses that double up to a limit."""

    def __init__(self, first_s: float, most_s: float) -> None:
        self._first_s = first_s
        self._most_s = most_s

    def failed(self, message: ReceivedMessage) -> float:
        """Counts a failure in the message; returns the seconds until it comes again."""
        message.reconsume_times += 1
        return backoff_s(message.reconsume_times, self._first_s, self._most_s)
