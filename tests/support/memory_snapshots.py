"""Snapshots of a `ListMachine` over a `MemoryLog`: what retention and installation need."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable
from typing import Any

import msgspec

from dledger.errors import DLedgerError, RemoteProtocolError, TransferFailedError
from jepsen_tests.sim.list_snapshots import Reader, Writer
from tests.support.memory_log import ListMachine, MemoryLog


class MemorySnapshots:
    """One replica's snapshots; they survive a crash as its log does."""

    def __init__(self, log: MemoryLog, machine: ListMachine, filler_bytes: int = 3_000_000) -> None:
        self.log = log
        self.machine = machine
        self.newest: tuple[int, bytes] | None = None
        self.filler = bytes(filler_bytes)
        self.catch_up_index = 0
        self.installed = 0
        self.received = 0
        self.install_delay_s = 0.01

    def take(self, keep: int = 0) -> None:
        """Takes a snapshot and drops what it makes dispensable but for `keep` entries."""
        index = self.machine.applied_index
        if self.catch_up_index > self.log.last_index or not index:
            return
        self.catch_up_index = 0
        self.newest = (index, msgspec.msgpack.encode((self.machine.applied, self.filler)))
        self.log.drop_before(min(index - keep, self.log.durable_index))

    def open_newest(self) -> Reader | None:
        return None if self.newest is None else Reader(*self.newest)

    def receive(self, applied_index: int, size_bytes: int, crc: int) -> Writer:
        self.received += 1
        return Writer(applied_index, size_bytes, crc)

    def install(
        self,
        writer: Any,
        record: bytes,
        may_install: Callable[[], bool],
        done: Callable[[int | None, DLedgerError | None], None],
    ) -> None:
        def run() -> None:
            applied_index, size, crc = writer.key
            if (len(writer.data), zlib.crc32(writer.data)) != (size, crc):
                done(None, RemoteProtocolError("damaged"))
            elif not may_install():
                done(None, TransferFailedError("not needed"))
            else:
                applied, _ = msgspec.msgpack.decode(writer.data, type=tuple[list[Any], bytes])
                if applied_index > self.machine.applied_index:
                    self.machine.applied = [(i, t, bytes(b)) for i, t, b in applied]
                    self.machine.applied_index = applied_index
                self.log.reset_to(record, 0)
                self.newest = (applied_index, writer.data)
                self.catch_up_index = self.machine.applied_index
                self.installed += 1
                done(self.machine.applied_index, None)

        asyncio.get_running_loop().call_later(self.install_delay_s, run)
