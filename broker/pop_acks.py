"""Gathers acknowledgements of popped messages, so that many become one log entry.

What arrives while an entry is on its way to a majority goes into the next one.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from typing import Final

from broker.context import RaftView
from broker.feature_commands import encode_feature
from broker.gate import WriteGate
from broker.pop_state import (
    ACKS_PER_COMMAND_MAX,
    Ack,
    Acked,
    AckMessages,
    offsets_of,
    unpack_bits,
)
from dledger.errors import DLedgerError, FlowControlError, InvariantError

WAITING_MAX: Final = 65_536
PLACES_MAX: Final = 4 * WAITING_MAX  # an acknowledgement may be of many messages
IN_FLIGHT_MAX: Final = 2

Done = Callable[[Acked | None, DLedgerError | None], None]
Place = tuple[str, str, int, int]  # group, topic, queue id, queue offset


class PopAcks:
    """Acknowledgements on their way into the log. Loop only."""

    def __init__(self, raft: RaftView, gate: WriteGate) -> None:
        self._raft = raft
        self._gate = gate
        self._waiting: deque[tuple[Ack, Done]] = deque()
        self._places: Counter[Place] = Counter()
        self._in_flight = 0
        self._scheduled = False

    def add(self, ack: Ack, callback: Done) -> None:
        """Takes an acknowledgement.

        Args:
            ack: Already checked.
            callback: Gets what became of it once that is committed and applied, or an error.

        Raises:
            NotLeaderError, DiskFullError, FlowControlError: Refused; nothing was taken.
        """
        self._gate.check()
        if len(self._waiting) >= WAITING_MAX or len(self._places) >= PLACES_MAX:
            raise FlowControlError(f"{len(self._places)} acknowledgements are under way")
        self._places.update(_places(ack))
        self._waiting.append((ack, callback))
        self._schedule()

    def is_under_way(self, place: Place) -> bool:
        """Whether a message is being acknowledged right now."""
        return place in self._places

    def _schedule(self) -> None:
        if self._waiting and not self._scheduled and self._in_flight < IN_FLIGHT_MAX:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._scheduled = False
        count = min(len(self._waiting), ACKS_PER_COMMAND_MAX)
        taken = [self._waiting.popleft() for _ in range(count)]
        if not taken:
            return
        self._in_flight += 1

        def done(result: object, error: DLedgerError | None) -> None:
            self._in_flight -= 1
            for number, (ack, callback) in enumerate(taken):
                self._forget(ack)
                if error is not None:
                    callback(None, error)
                elif isinstance(result, tuple) and len(result) == len(taken):
                    callback(Acked(result[number]), None)
                else:
                    raise InvariantError(f"acknowledging returned {result!r}")
            self._schedule()

        try:
            self._raft.propose(encode_feature(AckMessages([ack for ack, _ in taken])), done)
        except DLedgerError as error:
            done(None, error)

    def _forget(self, ack: Ack) -> None:
        # Not `Counter.__isub__`: that looks at every place there is, for each acknowledgement.
        for place in _places(ack):
            if self._places[place] > 1:
                self._places[place] -= 1
            else:
                del self._places[place]


def _places(ack: Ack) -> list[Place]:
    offsets = offsets_of(ack.key.start, unpack_bits(ack.bits))
    return [(ack.group, ack.topic, ack.queue_id, offset) for offset in offsets]
