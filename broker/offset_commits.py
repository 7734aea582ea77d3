"""Gathers consumer offsets, so that many commits become one log entry.

Consumers commit often and each commit is small. What arrives within a few milliseconds goes into
one COMMIT_OFFSETS entry; of several offsets for one queue the last counts, and everybody who waits
is answered when the entry is applied.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from broker import commands
from broker.context import RaftView
from broker.gate import WriteGate
from dledger.errors import DLedgerError, FlowControlError

logger = logging.getLogger(__name__)

# Well below what one command may hold; reaching it proposes at once.
GATHER_MAX = 4096
WAITERS_MAX = 65_536

Committed = Callable[[DLedgerError | None], None]


class OffsetCommits:
    """Consumer offsets on their way into the log."""

    def __init__(self, raft: RaftView, gate: WriteGate, *, gather_ms: float) -> None:
        self._raft = raft
        self._gate = gate
        self._gather_s = gather_ms / 1000
        self._offsets: dict[tuple[str, str, int], int] = {}
        self._waiters: list[Committed] = []
        self._waiting = 0
        self._timer: asyncio.TimerHandle | None = None

    def add(
        self, group: str, topic: str, queue_id: int, offset: int, callback: Committed | None = None
    ) -> None:
        """Takes one offset, already checked.

        Args:
            group: Consumer group.
            topic: Topic.
            queue_id: Queue of the topic.
            offset: Next queue offset to consume.
            callback: Gets None when the offset is committed and applied, or the error.

        Raises:
            NotLeaderError, DiskFullError, FlowControlError: Refused; nothing was taken.
        """
        self._gate.check()
        if callback is not None:
            if self._waiting >= WAITERS_MAX:
                raise FlowControlError(f"{WAITERS_MAX} offset commits are under way")
            self._waiting += 1
            self._waiters.append(callback)
        self._offsets[group, topic, queue_id] = offset
        if len(self._offsets) >= GATHER_MAX:
            self.flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._gather_s, self.flush)

    def flush(self) -> None:
        """Proposes what has gathered."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._offsets:
            return
        offsets, self._offsets = self._offsets, {}
        waiters, self._waiters = self._waiters, []

        def done(_result: object, error: DLedgerError | None) -> None:
            self._waiting -= len(waiters)
            if error is not None and not waiters:
                logger.debug("offsets not committed: count=%d reason=%s", len(offsets), error)
            for callback in waiters:
                callback(error)

        items = [(*key, offset) for key, offset in offsets.items()]
        try:
            self._raft.propose(commands.encode_commit_offsets(items), done)
        except DLedgerError as error:
            done(None, error)

    def close(self) -> None:
        """Proposes the rest and stops the timer."""
        self.flush()
