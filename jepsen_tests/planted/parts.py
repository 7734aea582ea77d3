"""Broken parts for brokers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from broker.config import BrokerConfig
from broker.server import Broker
from dledger.raft.engine import Engine
from dledger.raft.upstream import LEADER
from store.files import OsFileSystem

MakeBroker = Callable[[BrokerConfig], Broker]


class CommitsAlone(Engine):
    """K1: a leader takes for committed what it has written itself."""

    def tick(self) -> None:
        """Runs the engine, then commits everything."""
        super().tick()
        if self.raft_state() == LEADER:
            self._advance_commit(self._log.last_index)


class SwallowsSync(OsFileSystem):
    """K6: a disk that says synced and is not, but for the first time after a file was opened.

    So files and their sizes survive, as they would in a drive whose cache lies.
    """

    def __init__(self) -> None:
        self._fresh: set[int] = set()

    def create(self, path: Path, size_bytes: int) -> int:
        """Creates a file whose first sync is an honest one."""
        file = super().create(path, size_bytes)
        self._fresh.add(file)
        return file

    def sync(self, file: int) -> None:
        """Does nothing, but for a new file."""
        if file in self._fresh:
            self._fresh.discard(file)
            super().sync(file)


def commits_alone() -> MakeBroker:
    """Returns a maker of brokers that acknowledge before a majority has the entry."""
    return partial(Broker, engine_class=CommitsAlone)


def swallows_sync() -> MakeBroker:
    """Returns a maker of brokers whose log is never synced."""
    return partial(Broker, fs=SwallowsSync())


PLANTS: Mapping[str, Callable[[], MakeBroker]] = {"K1": commits_alone, "K6": swallows_sync}
