"""The harness of the comparison with other brokers: who cannot run or fails spoils nothing else."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from benchmarks.peers import run as harness
from benchmarks.peers.peer import Done, Peer, Send, Until, until_confirmed
from benchmarks.peers.servers import Servers, StartError, memory_mb
from cli.cluster import free_port_base

ROOT = Path(__file__).resolve().parents[2]
SLEEP = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]


class FakePeer(Peer):
    """Three processes that do nothing, and a broker that keeps messages in a list."""

    title, consensus, synced, client = "Fake", "none", "none", "none"

    def __init__(self, *, fails: str = "") -> None:
        self.fails = fails
        self.topics: dict[str, list[bytes]] = {}
        self.starts = self.stops = self.refused = self.revived = 0

    def missing(self) -> str | None:
        return None

    def version(self) -> str:
        return "1"

    def start(self, directory: Path) -> None:
        self.starts += 1
        self._servers = Servers(directory)
        for number in range(3):
            self._servers.start(f"n{number}", SLEEP)
        if self.fails == "start":
            raise StartError("no start")

    def stop(self) -> None:
        self.stops += 1
        self._servers.stop()

    def nodes(self) -> dict[str, int]:
        return {f"n{number}": self._servers.pid(f"n{number}") for number in range(3)}

    async def create(self, topic: str) -> None:
        self.topics[topic] = []

    @contextlib.asynccontextmanager
    async def publisher(self, topic: str, *, killing: bool = False) -> AsyncIterator[Send]:
        async def send(body: bytes) -> None:
            await asyncio.sleep(0.001)
            if self.refused:
                self.refused -= 1
                raise ConnectionError("killed")
            self.topics[topic].append(body)

        yield send

    async def consume(self, topic: str, count: int, seconds: float, each: int) -> Done:
        if self.fails == "consume":
            raise ConnectionError("no consumer")
        return Done(min(count, len(self.topics[topic])), 0.01)

    async def leader(self, topic: str) -> str:
        return "n1"

    def kill(self, node: str) -> None:
        self._servers.kill(node)
        self.refused = 3

    def revive(self) -> None:
        self.revived += 1
        self._servers.start("n1", SLEEP)


def measured(
    monkeypatch: pytest.MonkeyPatch, peers: dict[str, Peer | str], rounds: int = 1, kills: int = 1
) -> harness.Results:
    monkeypatch.setattr(harness, "load", peers.__getitem__)
    monkeypatch.setattr(harness.limit, "measure", lambda *_: {"messages_1k_per_s": 1000})
    sizes = harness.dataclasses.replace(
        harness.QUICK,
        rounds=rounds,
        idle_s=0,
        warm_up_s=0.01,
        load_s=0.05,
        latency_s=0.05,
        kills=kills,
    )
    return harness.measure(list(peers), sizes, minutes=5)


def rows(results: harness.Results, peer: str) -> set[str]:
    return {sample.name for sample in results.samples if sample.peer == peer}


def test_a_peer_that_cannot_run_or_fails_leaves_the_others_rows_complete(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, broken, dead = FakePeer(), FakePeer(fails="consume"), FakePeer(fails="start")
    peers: dict[str, Peer | str] = {
        "absent": "not installed",
        "dead": dead,
        "broken": broken,
        "whole": whole,
    }
    results = measured(monkeypatch, peers)
    consume = {name for name in rows(results, "whole") if name.startswith("consume")}
    assert len(consume) == 2
    assert rows(results, "broken") == rows(results, "whole") - consume
    assert rows(results, "dead") == rows(results, "absent") == set()
    assert results.problems[0] == "absent: cannot run here: not installed"
    failed = [problem.split(": failed: ")[0] for problem in results.problems[1:]]
    assert failed == [
        "dead: start",
        "broken: consume, each acknowledged",
        "broken: consume, per 100",
    ]
    assert dead.starts == 2  # perhaps somebody else took a port
    assert (whole.stops, broken.stops, dead.stops) == (1, 1, 2)


def test_a_send_is_repeated_until_the_cluster_has_got_over_the_kill(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    peer = FakePeer()
    results = measured(monkeypatch, {"whole": peer}, kills=2)
    pause = next(sample.value for sample in results.samples if sample.figure == "s")
    assert pause > 3 * 0.01
    assert len(peer.topics["kill-0"]) == len(peer.topics["kill-1"]) == 21
    assert peer.revived == 1


def test_rounds_go_back_and_forth_and_end_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    class Noted(FakePeer):
        def start(self, directory: Path) -> None:
            order.append(self.title)
            super().start(directory)

    peers: dict[str, Peer | str] = {"a": Noted(), "b": Noted()}
    for name, peer in peers.items():
        peer.title = name  # type: ignore[union-attr]
    assert measured(monkeypatch, peers, rounds=2).rounds == 2
    assert order == ["a", "b", "b", "a"]
    sizes = harness.dataclasses.replace(harness.QUICK, rounds=3)
    results = harness.measure(["a"], sizes, minutes=0)
    assert results.rounds == 1
    assert results.problems == ["only 1 of 3 rounds fit 0 minutes"]


def test_a_client_that_is_not_installed_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(harness.PEERS, "new", "benchmarks.peers.no_such_module:Peer")
    reason = harness.load("new")
    assert isinstance(reason, str)
    assert "no_such_module" in reason
    assert "setup.sh" in reason


def test_an_earlier_run_is_shown_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text("text\n<!-- peers: begin -->\nold\n<!-- peers: end -->\n")
    content = {
        "machine": harness.machine.facts(),
        "rounds": 3,
        "problems": [],
        "lines": harness.report.lines(
            harness.Results(samples=[harness.Sample("a", "publish", "messages_per_s", 5.0)])
        ),
    }
    earlier = tmp_path / "run.json"
    earlier.write_text(json.dumps(content))
    monkeypatch.setattr(harness, "PAGE", page)
    monkeypatch.setattr(sys, "argv", ["run.py", "--from", str(earlier), "--write"])
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert harness.main() == 0
    assert "| publish, /s | 5 |" in capsys.readouterr().out
    assert page.read_text().startswith("text\n<!-- peers: begin -->\nMedians (rounds: 3) on ")
    assert "| publish, /s | 5 |\n<!-- peers: end -->\n" in page.read_text()


def test_dledger_is_measured_where_no_other_peer_is_installed(tmp_path: Path) -> None:
    out = tmp_path / "peers.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "peers" / "run.py"), "--quick"]
    command += ["--peer", "dledger", "--json", str(out)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=110)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert ended.stdout.startswith("|  | dledger | limit program |")
    lines = [line for line in json.loads(out.read_text())["lines"] if line["peer"] == "dledger"]
    assert {line["synced"] for line in lines} == {"a majority's"}
    names = {line["name"] for line in lines}
    assert {
        "publish, window 1,000, 128 B",
        "publish, window 1,000, 1 KiB",
        "publish, one after the other, 1 KiB",
        "publish, one message a request, window 1,000, 1 KiB",
        "consume a backlog, 1 KiB, each acknowledged",
        "consume a backlog, 1 KiB, acknowledged per 100",
        "kill -9 of the leader to the next acknowledgement",
        "memory of a node, idle",
        "memory of a node, peak",
    } <= names


def test_servers_are_started_killed_and_ended(tmp_path: Path) -> None:
    servers = Servers(tmp_path)
    servers.start("one", SLEEP)
    servers.start("two", SLEEP)
    pids = [servers.pid("one"), servers.pid("two")]
    try:
        servers.wait("one", lambda: "up" in servers.output("one"), 20)
        assert 0 < memory_mb(pids[0]) <= memory_mb(pids[0], peak=True) < 1000
        servers.kill("two")
        assert servers.ended() == ["two"]
        with pytest.raises(StartError, match="two ended"):
            servers.wait_port("two", free_port_base(1))
    finally:
        servers.stop()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_counting_ends_with_the_last_message_or_the_time() -> None:
    async def count(expected: int, seconds: float) -> Done:
        until = Until(expected)
        for _ in range(5):
            until.add()
        return await until.done(seconds)

    assert asyncio.run(count(3, 10)).messages == 3
    late = asyncio.run(count(6, 0.05))
    assert late.messages == 5
    assert late.seconds >= 0.05


def test_until_confirmed_gives_up_only_when_cancelled() -> None:
    async def never(_: bytes) -> None:
        raise ConnectionError

    async def case() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await until_confirmed(never, b"")

    asyncio.run(case())
