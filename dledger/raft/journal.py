"""pysyncobj's journal seam over our log: the CommitLog itself is the Raft log.

The library only ever asks for the first and the last entry through this object; ranges are
answered by the engine from the log directly, so no list of the log exists in memory.
"""

from __future__ import annotations

from typing import Any

from pysyncobj.journal import Journal

from dledger.errors import InvariantError
from dledger.raft.protocols import LogStorage

_EntryTuple = tuple[bytes, int, int]


class LogJournal(Journal):  # type: ignore[misc]
    """Presents a `LogStorage` as the library's journal."""

    def __init__(self, log: LogStorage) -> None:
        self._log = log

    def add(self, command: Any, idx: int, term: int) -> None:
        """Writes one entry; a stamped command is encoded for the place it gets."""
        encode = getattr(command, "encode", None)
        if encode is not None:
            command = encode(self._log.offset_end + self._log.record_header_bytes)
        self._log.append(idx, term, command)

    def __len__(self) -> int:
        return self._log.last_index - self._log.first_index + 1

    def __getitem__(self, item: Any) -> _EntryTuple:
        log = self._log
        if item == -1:
            return (b"", log.last_index, log.last_term)
        if item == 0:
            first = log.first_index
            return (b"", first, log.term_at(first) or 0)
        raise InvariantError(f"the library asked the journal for {item!r}")

    def setCurrentTerm(self, term: int, votedForNodeId: str | None) -> None:
        """Stores term and vote; durable before any message that reflects them leaves."""
        self._log.save_vote(term, votedForNodeId)

    def getCurrentTerm(self) -> int:
        """Returns the stored term."""
        return self._log.term

    def getVotedForNodeId(self) -> str | None:
        """Returns the stored vote."""
        return self._log.voted_for

    def setRaftCommitIndex(self, raftCommitIndex: int) -> None:
        """Does nothing: after a restart the state machine's applied index takes its place."""

    def getRaftCommitIndex(self) -> int:
        """Returns the first index; the engine raises it to the applied index at once."""
        return 1

    def _destroy(self) -> None:
        """Does nothing: the log belongs to the broker."""
