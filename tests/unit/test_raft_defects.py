"""Every defect of pysyncobj 0.3.17 that we know, shown on the stock library and absent in ours.

Each test runs one scenario on both. If the stock half fails, upstream has changed: read its new
code before touching `dledger.raft`.
"""

from __future__ import annotations

import os
import pickle
import zlib
from pathlib import Path
from typing import Any

import pysyncobj
import pytest
from pysyncobj.journal import FileJournal
from pysyncobj.tcp_connection import TcpConnection

from dledger.errors import InvariantError, ProtocolError
from dledger.raft import upstream
from dledger.raft.config import RaftConfig
from dledger.raft.messages import MessageDecoder, decode_message
from tests.support.one_replica import OurReplica, StockReplica

TAIL = [(index, 1, b"\x10e%d" % index) for index in range(2, 7)]


def appends(replica: StockReplica | OurReplica, peer: str = "b") -> list[dict[str, Any]]:
    return [m for to, m in replica.sent if to == peer and m["type"] == "append_entries"]


def replies(replica: StockReplica | OurReplica) -> list[dict[str, Any]]:
    return [m for _, m in replica.sent if m["type"] == "next_node_idx"]


def test_1_a_success_reply_does_not_resend_what_is_in_flight() -> None:
    def scenario(replica: StockReplica | OurReplica) -> tuple[int, int]:
        replica.lead()
        for number in range(3):
            replica.propose(b"%d" % number)
        last = replica.log()[-1][0]
        replica.reply("b", last - 1, success=True)  # confirms all but the last two
        peer = next(node for node in replica.get("otherNodes") if node.id == "b")
        return int(replica.get("raftNextIndex")[peer]), last + 1

    went_back, expected = scenario(StockReplica())
    assert went_back < expected
    stayed, expected = scenario(OurReplica())
    assert stayed == expected


def test_2_a_repeated_append_truncates_nothing() -> None:
    def scenario(replica: StockReplica | OurReplica) -> int:
        replica.append("b", 1, (1, 0), TAIL)
        replica.append("b", 1, (1, 0), TAIL[:1])  # an older message, sent again
        replica.append("b", 1, (1, 0))  # and a heartbeat
        return len(replica.log())

    assert scenario(StockReplica()) < 1 + len(TAIL)
    ours = OurReplica()
    assert scenario(ours) == 1 + len(TAIL)
    assert not ours.memory_log.truncations


def test_2_a_real_conflict_is_truncated_and_confirmed_exactly() -> None:
    ours = OurReplica()
    ours.append("b", 1, (1, 0), TAIL)
    ours.append("c", 2, (3, 1), [(4, 2, b"\x10new")])
    assert ours.log() == [(1, 0), (2, 1), (3, 1), (4, 2)]
    assert replies(ours)[-1]["next_node_idx"] == 5
    assert replies(ours)[-1]["success"]


def test_2_a_committed_entry_is_never_truncated() -> None:
    ours = OurReplica()
    ours.append("b", 1, (1, 0), TAIL, commit=6)
    with pytest.raises(InvariantError):
        ours.append("c", 2, (3, 1), [(4, 2, b"\x10new")])


def test_3_a_conflict_is_found_in_one_round_not_one_index_a_heartbeat() -> None:
    stale = [(index, 1, b"\x10s") for index in range(2, 102)]

    def hint(replica: StockReplica | OurReplica) -> int:
        replica.append("b", 1, (1, 0), stale)
        replica.append("c", 3, (101, 2))
        return int(replies(replica)[-1]["next_node_idx"])

    assert hint(StockReplica()) == 101  # 99 more heartbeats to go
    assert hint(OurReplica()) == 2

    def resent(replica: StockReplica | OurReplica) -> int:
        replica.lead()
        replica.reply("b", 2, success=True)
        replica.propose(b"x")
        before = len(appends(replica))
        replica.reply("b", 2, success=False)
        return len(appends(replica)) - before

    assert resent(StockReplica()) == 0  # waits for the next heartbeat
    assert resent(OurReplica()) == 1


def test_4_a_reply_of_an_earlier_leadership_counts_for_nothing() -> None:
    def match_after_stale_reply(replica: StockReplica | OurReplica) -> int:
        replica.append("b", 4, (1, 0))
        replica.lead()
        replica.propose(b"x")
        last = replica.log()[-1][0]
        replica.reply("c", last + 1, success=True, term=3)
        peer = next(node for node in replica.get("otherNodes") if node.id == "c")
        return int(replica.get("raftMatchIndex")[peer])

    assert match_after_stale_reply(StockReplica()) > 0
    assert match_after_stale_reply(OurReplica()) == 0


def test_5_the_stock_journal_never_syncs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours: tests of store.commit_log and store.vote_file, and the durability tests below."""
    calls: list[int] = []
    monkeypatch.setattr(os, "fsync", calls.append)
    monkeypatch.setattr(os, "fdatasync", calls.append)
    journal = FileJournal(str(tmp_path / "journal"))
    journal.add(b"x", 2, 1)
    journal.setCurrentTerm(7, "b")
    assert not calls
    journal._destroy()


def test_5_a_follower_confirms_only_what_is_durable() -> None:
    stock = StockReplica()
    stock.append("b", 1, (1, 0), TAIL)
    assert replies(stock)[-1]["success"]  # at once, nothing synced

    ours = OurReplica()
    ours.durable = False
    ours.append("b", 1, (1, 0))
    ours.append("b", 1, (1, 0), TAIL)
    assert max(reply["next_node_idx"] for reply in replies(ours)) <= 2
    ours.sync()
    assert replies(ours)[-1] == {
        **replies(ours)[-1],
        "success": True,
        "next_node_idx": len(TAIL) + 2,
    }


def test_5_the_leader_counts_itself_only_when_durable() -> None:
    ours = OurReplica()
    ours.lead()
    ours.durable = False
    ours.propose(b"x")
    last = ours.log()[-1][0]
    ours.reply("b", last + 1, success=True)
    ours.tick()
    assert ours.engine.commit_index() < last
    ours.sync()
    ours.tick()
    assert ours.engine.commit_index() == last


class _Bomb:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (os.mkdir, ("/tmp/dledger-unpickled",))


def test_6_nothing_from_the_network_is_unpickled() -> None:
    connection = TcpConnection(poller=_NoPoller())
    payload = zlib.compress(pickle.dumps({"any": "thing"}))
    connection._TcpConnection__readBuffer = len(payload).to_bytes(4, "little") + payload
    # The stock library unpickles whatever arrives.
    assert connection._TcpConnection__processParseMessage() == {"any": "thing"}

    bomb = pickle.dumps(_Bomb())
    frame = (2 + len(bomb)).to_bytes(4, "big") + len(bomb).to_bytes(2, "big") + bomb
    with pytest.raises(ProtocolError):
        for header, body in MessageDecoder().receive_data(frame):
            decode_message(header, body)
    assert not Path("/tmp/dledger-unpickled").exists()
    ours = OurReplica()
    with pytest.raises(InvariantError):
        ours.engine._SyncObj__doApplyCommand(b"\x00" + bomb)
    assert ours.engine._SyncObj__parseChangeClusterRequest(b"\x02" + bomb) is None


class _NoPoller:
    def subscribe(self, *_args: Any) -> None: ...

    def unsubscribe(self, *_args: Any) -> None: ...


def test_7_a_silent_follower_gets_a_bounded_window() -> None:
    def sent_bytes(replica: StockReplica | OurReplica) -> int:
        replica.lead()
        replica.reply("b", 2, success=True)
        replica.reply("c", 2, success=True)
        for _ in range(40):
            replica.propose(bytes(1_000_000))
            replica.reply("c", replica.log()[-1][0] + 1, success=True)
        total = 0
        for message in appends(replica):
            total += sum(len(item[0]) for item in message.get("entries", ()))
            total += sum(map(len, message.get("records", ()))) + len(message.get("data", b""))
        return total

    assert sent_bytes(StockReplica()) >= 40_000_000
    assert sent_bytes(OurReplica()) <= RaftConfig().window_bytes + 2_000_000


def test_8_a_replica_without_a_leader_does_not_raise_its_term() -> None:
    def term_after_silence(replica: StockReplica | OurReplica) -> int:
        for _ in range(20):
            replica.clock.advance(1)
            replica.tick()
        return int(replica.get("raftCurrentTerm"))

    assert term_after_silence(StockReplica()) >= 20
    assert term_after_silence(OurReplica()) == 0


def test_8_a_leader_learns_of_a_later_term_from_the_reply() -> None:
    def answered(replica: StockReplica | OurReplica) -> bool:
        replica.append("b", 9, (1, 0))
        del replica.sent[:]
        replica.append("c", 5, (1, 0))  # a deposed leader that has not noticed
        return bool(replies(replica))

    assert not answered(StockReplica())
    assert answered(OurReplica())


def test_9_a_cut_off_leader_steps_down_within_a_second() -> None:
    def leads_after(replica: StockReplica | OurReplica, seconds: float) -> bool:
        replica.lead()
        replica.clock.advance(seconds)
        replica.tick()
        return int(replica.get("raftState")) == upstream.LEADER

    assert leads_after(StockReplica(), 20)
    assert not leads_after(OurReplica(), 1.0)


def test_11_a_large_entry_takes_the_ordinary_path() -> None:
    stock = StockReplica()
    stock.lead()
    stock.reply("b", 3, success=True)
    stock.propose(bytes(200_000))
    assert any("transmission" in message for message in appends(stock))

    ours = OurReplica()
    ours.lead()
    ours.reply("b", 2, success=True)
    ours.propose(bytes(5_000_000))
    assert not any("transmission" in message for message in appends(ours))
    assert sum(map(len, appends(ours)[-1]["records"])) > 5_000_000


def test_12_a_snapshot_piece_moves_no_commit_index() -> None:
    def commit_after_piece(replica: StockReplica | OurReplica) -> int:
        replica.append("b", 1, (1, 0), TAIL)  # a tail that was never committed
        replica.snapshot_piece("c", 2, commit=100)
        return int(replica.get("raftCommitIndex"))

    assert commit_after_piece(StockReplica()) == 6
    assert commit_after_piece(OurReplica()) == 1


def test_12_the_commit_index_is_clamped_to_what_is_verified() -> None:
    ours = OurReplica()
    ours.append("b", 1, (1, 0), TAIL)
    ours.append("c", 2, (2, 1), commit=100)  # matches up to 2; the rest is not verified
    assert ours.engine.commit_index() == 2
    assert len(ours.log()) == 6


def test_14_a_restart_begins_at_the_applied_index() -> None:
    assert StockReplica().get("raftLastApplied") == 1
    ours = OurReplica()
    ours.append("b", 1, (1, 0), TAIL, commit=6)
    ours.tick()
    assert ours.machine.applied_index == 6
    ours.engine.restore(6)
    assert ours.get("raftLastApplied") == 6
    assert ours.engine.commit_index() == 6


def test_a_renamed_private_member_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(pysyncobj.SyncObj, "_SyncObj__onBecomeLeader")
    with pytest.raises(InvariantError, match="renamed"):
        upstream.check_upstream()


def test_another_version_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream, "LIBRARY_VERSION", "0.3.18")
    with pytest.raises(InvariantError, match="another version"):
        upstream.check_upstream()


@pytest.mark.parametrize("name", upstream.LIBRARY_FIELDS)
def test_each_private_field_is_checked(name: str) -> None:
    ours = OurReplica()
    delattr(ours.engine, f"_SyncObj{name}")
    with pytest.raises(InvariantError, match="renamed"):
        upstream.check_fields(ours.engine)


def test_a_missing_override_would_be_noticed() -> None:
    """Every method that the engine overrides is one that the library has."""
    from dledger.raft.engine import Engine

    overridden = {name for name in vars(Engine) if name.startswith("_SyncObj__")}
    known = {f"_SyncObj{name}" for name in upstream.LIBRARY_METHODS}
    assert overridden <= known
