"""Broken parts for brokers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import broker.server
from broker.config import BrokerConfig
from broker.server import Broker
from dledger.raft.engine import Engine
from dledger.raft.node import RaftNode
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
    """K6: a disk that says synced and is not."""

    def sync(self, file: int) -> None:
        """Does nothing."""


def commits_alone() -> MakeBroker:
    """Returns a maker of brokers that acknowledge before a majority has the entry."""
    broker.server.RaftNode = partial(RaftNode, engine_class=CommitsAlone)  # type: ignore[assignment,misc,attr-defined]
    return Broker


def swallows_sync() -> MakeBroker:
    """Returns a maker of brokers whose log is never synced."""
    return partial(Broker, fs=SwallowsSync())


PLANTS: Mapping[str, Callable[[], MakeBroker]] = {"K1": commits_alone, "K6": swallows_sync}
