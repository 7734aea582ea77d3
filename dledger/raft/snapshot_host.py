"""The part of a node that hands snapshots between the engine and the broker."""

from __future__ import annotations

import logging
from collections.abc import Callable

from dledger.errors import DiskFullError, DLedgerError, RemoteProtocolError, StoreError
from dledger.raft.engine import Engine
from dledger.raft.protocols import SnapshotExchange, SnapshotReader, SnapshotWriter

logger = logging.getLogger(__name__)


class SnapshotHost:
    """What the engine asks of its node about snapshots."""

    _engine: Engine
    _snapshots: SnapshotExchange | None
    _stopped: bool

    def open_snapshot(self) -> SnapshotReader | None:
        """Returns the newest snapshot of the state, None if there is none."""
        return None if self._snapshots is None else self._snapshots.open_newest()

    def receive_snapshot(self, applied_index: int, size_bytes: int, crc: int) -> SnapshotWriter:
        """Begins to receive a snapshot."""
        if self._snapshots is None:
            raise RemoteProtocolError("a snapshot for a replica that takes none")
        return self._snapshots.receive(applied_index, size_bytes, crc)

    def install_snapshot(
        self,
        writer: SnapshotWriter,
        record: bytes,
        done: Callable[[DLedgerError | None], None],
    ) -> None:
        """Replaces log and state by a received snapshot and the first entry of a log."""
        if self._snapshots is None:
            raise RemoteProtocolError("a snapshot for a replica that takes none")
        engine = self._engine

        def installed(applied_index: int | None, error: DLedgerError | None) -> None:
            if self._stopped:
                return
            if error is None and applied_index is not None:
                engine.installed(applied_index)
                logger.info("snapshot installed: applied_index=%d", applied_index)
            elif isinstance(error, StoreError) and not isinstance(error, DiskFullError):
                self._fatal(error)
                return
            done(error)
            self.wake()

        self._snapshots.install(writer, record, lambda: engine.may_install(record), installed)

    def wake(self) -> None:
        """Ticks once, soon."""
        raise NotImplementedError

    def _fatal(self, error: BaseException) -> None:
        raise NotImplementedError
