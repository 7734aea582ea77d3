"""Snapshots of the raft layer's list, and what lets its log drop old segments.

They stand in for `broker.installing` and `broker.retention`: what they promise is the same (a
crash leaves the old log and state or the new ones), what is behind it is a list of numbers.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from dledger.errors import DLedgerError, RemoteProtocolError, TransferFailedError
from jepsen_tests.sim.host import Host
from store.commit_log import CommitLog
from store.config import StoreConfig
from store.log_reset import reset_directory

INSTALL_S = 0.01
_State = tuple[int, list[int]]


class ListState:
    """Applied numbers. Lives on the machine, as an LMDB file in the page cache does."""

    def __init__(self, applied_index: int = 0, values: list[int] | None = None) -> None:
        self.applied_index = applied_index
        self.values: list[int] = values or []


@dataclass
class Shelf:
    """What a machine's disk keeps of snapshots; synced, so that nothing of it is ever lost."""

    newest: tuple[int, bytes] | None = None
    installing: bytes | None = None  # the record that the log must begin with
    catch_up_index: int = 0


def shelf_of(host: Host) -> Shelf:
    """Returns a machine's snapshots."""
    shelf: Shelf | None = getattr(host, "shelf", None)
    if shelf is None:
        shelf = Shelf()
        host.shelf = shelf  # type: ignore[attr-defined]
    return shelf


def load_state(host: Host) -> ListState:
    """Returns what is applied on a machine: after a loss of power, the newest snapshot."""
    boot, state = getattr(host, "list_state", (-1, None))
    if boot != host.boots or state is None:
        newest = shelf_of(host).newest
        state = ListState(*_decode(newest[1])) if newest else ListState()
        host.list_state = (host.boots, state)  # type: ignore[attr-defined]
    return state  # type: ignore[no-any-return]


def finish_installation(host: Host, directory: Any, config: StoreConfig) -> int | None:
    """Ends an installation that a crash has interrupted; returns up to where, None without one."""
    shelf = shelf_of(host)
    if shelf.installing is None or shelf.newest is None:
        return None
    reset_directory(host.disk.files, directory, config, shelf.installing)
    state = load_state(host)
    _replace(host, state, shelf)
    return state.applied_index


def _replace(host: Host, state: ListState, shelf: Shelf) -> None:
    newest = shelf.newest
    if newest is not None:
        state.applied_index, state.values = _decode(newest[1])
        shelf.catch_up_index = state.applied_index
    shelf.installing = None


def _decode(data: bytes) -> _State:
    state: _State = msgspec.msgpack.decode(data, type=_State)
    return state


class Reader:
    """A snapshot being sent."""

    def __init__(self, applied_index: int, data: bytes) -> None:
        self.applied_index = applied_index
        self.size_bytes = len(data)
        self.crc = zlib.crc32(data)
        self._data = data

    def read(self, position: int, size_bytes: int) -> bytes:
        """Returns a piece."""
        return self._data[position : position + size_bytes]

    def close(self) -> None:
        """Nothing is open."""


class Writer:
    """A snapshot being received."""

    def __init__(self, applied_index: int, size_bytes: int, crc: int) -> None:
        self.key = (applied_index, size_bytes, crc)
        self.data = b""

    @property
    def position(self) -> int:
        """Bytes stored."""
        return len(self.data)

    def write(self, data: bytes) -> None:
        """Stores a piece."""
        self.data += data

    def abort(self) -> None:
        """Throws it away."""
        self.data = b""


class ListSnapshots:
    """The snapshots of one replica. Satisfies `SnapshotExchange`."""

    def __init__(
        self,
        host: Host,
        log: CommitLog,
        state: ListState,
        on_installed: Callable[[int], None],
    ) -> None:
        self._host = host
        self._log = log
        self._state = state
        self._shelf = shelf_of(host)
        self._on_installed = on_installed
        log.subscribe_durable(self._on_durable)
        self._on_durable(log.durable_index)

    @property
    def catch_up_index(self) -> int:
        """How far the state may be ahead of the log; 0: not at all."""
        return self._shelf.catch_up_index

    def compact(self, keep: int) -> int:
        """Takes a snapshot and drops segments from the front, but for `keep` entries.

        Returns how many segments went.
        """
        log, state = self._log, self._state
        if not state.applied_index or self._shelf.catch_up_index:
            return 0
        data = msgspec.msgpack.encode((state.applied_index, state.values))
        self._shelf.newest = (state.applied_index, data)
        removal = log.release_front(log.offset_end, state.applied_index - keep)
        if removal is None:
            return 0
        removal.run()
        return len(removal.segments)

    def open_newest(self) -> Reader | None:
        """Returns the newest snapshot."""
        newest = self._shelf.newest
        return None if newest is None else Reader(*newest)

    def receive(self, applied_index: int, size_bytes: int, crc: int) -> Writer:
        """Begins to receive one."""
        return Writer(applied_index, size_bytes, crc)

    def install(
        self,
        writer: Any,
        record: bytes,
        may_install: Callable[[], bool],
        done: Callable[[int | None, DLedgerError | None], None],
    ) -> None:
        """Replaces log and state, a moment later."""

        def run() -> None:
            applied_index, size, crc = writer.key
            if (len(writer.data), zlib.crc32(writer.data)) != (size, crc):
                done(None, RemoteProtocolError("damaged on its way"))
                return
            shelf = self._shelf
            try:
                if not may_install():
                    raise TransferFailedError("the log has gone on; no snapshot is needed")
                shelf.newest, shelf.installing = (applied_index, writer.data), record
                self._log.reset_to(record)
            except DLedgerError as error:
                done(None, error)
                return
            _replace(self._host, self._state, shelf)
            self._on_installed(applied_index)
            done(self._state.applied_index, None)

        self._host.loop.call_later(INSTALL_S, run)

    def _on_durable(self, index: int) -> None:
        if index >= self._shelf.catch_up_index:
            self._shelf.catch_up_index = 0
