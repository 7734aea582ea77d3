"""One replica fed with hand-written messages: the stock library and our engine side by side."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from pysyncobj import SyncObj, SyncObjConf
from pysyncobj.node import Node
from pysyncobj.transport import Transport

from dledger.clock import ManualClock
from dledger.raft.config import RaftConfig
from dledger.raft.configuration import Configuration, Member, bootstrap
from dledger.raft.engine import Engine
from dledger.raft.membership import Membership
from dledger.raft.upstream import LEADER, engine_clock
from jepsen_tests.sim.list_snapshots import Writer
from tests.support.memory_log import ListMachine, MemoryLog, entry

Message = dict[str, Any]


def group_of(*ids: str) -> Configuration:
    """The configuration a group of these replicas begins with."""
    members = [
        Member(id=name, number=number, raft_address=f"127.0.0.1:{number + 1}")
        for number, name in enumerate(sorted(ids))
    ]
    return bootstrap(members)


class _Recorder(Transport):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__(None, None, [])
        self.sent: list[tuple[str, Message]] = []

    def send(self, node: Node, message: Message) -> bool:
        self.sent.append((node.id, message))
        return True


class StockReplica:
    """pysyncobj as it comes, with its own journal in memory."""

    def __init__(self, peers: Sequence[str] = ("b", "c")) -> None:
        self.clock = ManualClock()
        engine_clock.set(self.clock)
        self.transport = _Recorder()
        conf = SyncObjConf(
            autoTick=False,
            appendEntriesUseBatch=False,
            raftMinTimeout=0.4,
            raftMaxTimeout=0.5,
            appendEntriesPeriod=0.1,
            commandsWaitLeader=False,
        )
        self.sync_obj = SyncObj(
            Node("a"),
            [Node(peer) for peer in peers],
            conf,
            nodeClass=Node,
            transport=self.transport,
        )
        for peer in peers:
            self.sync_obj._SyncObj__onNodeConnected(Node(peer))
        self.sync_obj._SyncObj__doApplyCommand = lambda command: None

    @property
    def sent(self) -> list[tuple[str, Message]]:
        return self.transport.sent

    def get(self, name: str) -> Any:
        return getattr(self.sync_obj, f"_SyncObj__{name}")

    def receive(self, peer: str, message: Message) -> None:
        self.sync_obj._SyncObj__onMessageReceived(Node(peer), message)

    def append(
        self,
        peer: str,
        term: int,
        previous: tuple[int, int],
        entries: Sequence[tuple[int, int, bytes]] = (),
        commit: int = 1,
    ) -> None:
        self.receive(
            peer,
            {
                "type": "append_entries",
                "term": term,
                "commit_index": commit,
                "prevLogIdx": previous[0],
                "prevLogTerm": previous[1],
                "entries": [(body, index, entry_term) for index, entry_term, body in entries],
            },
        )

    def snapshot_piece(self, peer: str, term: int, commit: int) -> None:
        self.receive(
            peer,
            {"type": "append_entries", "term": term, "commit_index": commit, "serialized": None},
        )

    def reply(self, peer: str, next_index: int, *, success: bool, **_ours: Any) -> None:
        self.receive(
            peer,
            {
                "type": "next_node_idx",
                "next_node_idx": next_index,
                "success": success,
                "reset": not success,
            },
        )

    def propose(self, body: bytes) -> None:
        self.sync_obj._applyCommand(b"\x00" + body, None)
        self.sync_obj._checkCommandsToApply()

    def tick(self) -> None:
        self.sync_obj.doTick(0)

    def log(self) -> list[tuple[int, int]]:
        return [(index, term) for _, index, term in self.get("raftLog")[:]]

    def lead(self) -> None:
        self.clock.advance(2)
        self.tick()
        self.vote()

    def vote(self) -> None:
        self.receive("b", {"type": "response_vote", "term": self.get("raftCurrentTerm")})
        self.tick()


class OurReplica:
    """Our engine over a log in memory that is durable when the test says so."""

    def __init__(self, peers: Sequence[str] = ("b", "c"), applied_index: int = 0) -> None:
        self.clock = ManualClock()
        self.memory_log = MemoryLog(None)
        self.machine = ListMachine()
        self.sent: list[tuple[str, Message]] = []
        self.durable = True
        self.membership = Membership(
            self.memory_log, "a", group_of("a", *peers), directory_id="directory-a"
        )
        self.engine = Engine(
            "a", self.membership, RaftConfig(), self.memory_log, self, self.clock, random.Random(1)
        )
        self.engine.restore(applied_index)
        for peer in peers:
            self.engine.peer_up(peer)
        self.sync()

    # host
    def send(self, peer_id: str, message: Message) -> bool:
        self.sent.append((peer_id, message))
        return True

    def buffered_bytes(self, peer_id: str) -> int:
        return 0

    def apply(self, entries: Sequence[Any]) -> bool:
        self.machine.apply(entries)
        return True

    def state_changed(self) -> None:
        pass

    def members_changed(self) -> None:
        pass

    def wake_within(self, delay_s: float) -> None:
        """Nothing: tests tick themselves."""

    def awaits_followers(self) -> bool:
        return False

    def wake(self) -> None:
        pass

    def open_snapshot(self) -> None:
        return None

    def receive_snapshot(self, applied_index: int, size_bytes: int, crc: int) -> Writer:
        return Writer(applied_index, size_bytes, crc)

    def install_snapshot(self, writer: Any, record: bytes, done: Any) -> None:
        raise AssertionError("not to be installed")

    # test
    def sync(self) -> None:
        self.memory_log.sync()
        self.engine.durable_changed()

    def get(self, name: str) -> Any:
        return getattr(self.engine, f"_SyncObj__{name}")

    def receive(self, peer: str, message: Message) -> None:
        self.engine.receive(peer, message)
        if self.durable:
            self.sync()

    def append(
        self,
        peer: str,
        term: int,
        previous: tuple[int, int],
        entries: Sequence[tuple[int, int, bytes]] = (),
        commit: int = 1,
    ) -> None:
        payload = b"".join(entry(index, t, body).record for index, t, body in entries)
        self.receive(
            peer,
            {
                "type": "append_entries",
                "term": term,
                "commit_index": commit,
                "prevLogIdx": previous[0],
                "prevLogTerm": previous[1],
                "session": 0,
                "round": 1,
                "payload": payload,
            },
        )

    def snapshot_piece(self, peer: str, term: int, commit: int) -> None:
        self.receive(
            peer,
            {
                "type": "append_entries",
                "term": term,
                "commit_index": commit,
                "serialized": None,
                "session": 0,
                "round": 1,
                "payload": b"",
            },
        )

    def reply(self, peer: str, next_index: int, *, success: bool, term: int | None = None) -> None:
        self.receive(
            peer,
            {
                "type": "next_node_idx",
                "term": self.engine.raft_term() if term is None else term,
                "next_node_idx": next_index,
                "success": success,
                "reset": not success,
                "session": self.engine._progress[peer].session,
                "round": 1,
            },
        )

    def propose(self, body: bytes) -> None:
        self.engine.propose(b"\x10" + body)
        if self.durable:
            self.sync()

    def tick(self) -> None:
        self.engine.tick()

    def log(self) -> list[tuple[int, int]]:
        return [(item.index, item.term) for item in self.memory_log.entries]

    def lead(self) -> None:
        self.clock.advance(2)
        self.tick()
        self.receive(
            "b",
            {
                "type": "pre_vote_response",
                "term": self.engine.raft_term() + 1,
                "current_term": self.engine.raft_term(),
                "granted": True,
            },
        )
        self.vote()
        assert self.engine.raft_state() == LEADER

    def vote(self) -> None:
        self.receive("b", {"type": "response_vote", "term": self.engine.raft_term()})
        self.tick()
