"""A leader handing its office to a follower, so that a planned stop costs no election timeout.

While it is under way the leader takes no new proposals; once everything proposed is committed and
the follower has confirmed the whole log, the follower is told to hold an election at once. The
leader only ever loses office by the later term that follows, so a lost message costs nothing but
the wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from dledger.errors import CommitTimeoutError, TransferFailedError


class TransferEngine(Protocol):
    """What a transfer needs of the engine."""

    def raft_term(self) -> int:
        """Returns the current term."""
        ...

    def raft_leader_id(self) -> str | None:
        """Returns the known leader."""
        ...

    def is_caught_up(self, peer_id: str) -> bool:
        """Whether a connected follower has confirmed the whole log."""
        ...

    def send_timeout_now(self, peer_id: str) -> bool:
        """Asks a follower to hold an election at once."""
        ...


class Transfer:
    """One handing over under way. `result` becomes the new leader's id, or None if unknown."""

    def __init__(self, candidates: Sequence[str], term: int, deadline: float) -> None:
        self.result: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self._candidates = candidates
        self._term = term
        self._deadline = deadline
        self._asked: str | None = None

    def advance(self, engine: TransferEngine, own_id: str, now: float, *, is_settled: bool) -> bool:
        """Does the next step; True when the transfer has ended, one way or the other.

        Args:
            engine: This replica's.
            own_id: This replica.
            now: Monotonic time.
            is_settled: Everything proposed is committed and answered.
        """
        leader = engine.raft_leader_id()
        if engine.raft_term() > self._term and (leader is not None or now >= self._deadline):
            if leader == own_id:
                self._fail(TransferFailedError("this replica was elected again"))
            elif not self.result.done():
                self.result.set_result(leader)
            return True
        if now >= self._deadline:
            if self._asked is None:
                text = "no follower had the whole log in time; the leader goes on"
                self._fail(TransferFailedError(text))
            else:
                text = f"{self._asked} did not take over in time; it still may"
                self._fail(CommitTimeoutError(text))
            return True
        if is_settled and self._asked is None:
            for candidate in self._candidates:
                if engine.is_caught_up(candidate) and engine.send_timeout_now(candidate):
                    self._asked = candidate
                    break
        return False

    def abandon(self) -> None:
        """Ends it because this replica stops."""
        self._fail(TransferFailedError("the replica stopped"))

    def _fail(self, error: Exception) -> None:
        if not self.result.done():
            self.result.set_exception(error)
