"""dledger beside other replicated brokers, each measured alone, in turns, in one run.

    make bench-peers                                 about ten minutes; to build/peers.json
    build/peers/venv/bin/python benchmarks/peers/run.py --quick      which peers run here?
    ... run.py --peer rabbitmq --peer dledger        only these
    ... run.py --from build/peers.json --write       the table of an earlier run into the docs

Exit codes: 0: every peer that can run here was measured; 1: a case failed; 2: wrong usage.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import gc
import importlib
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import limit, machine, single
from benchmarks.peers import report
from benchmarks.peers.peer import Done, Peer, until_confirmed
from benchmarks.peers.remoting import RemotingPeer, no_java
from benchmarks.peers.report import Results, Sample
from benchmarks.peers.servers import memory_mb
from dledger.bench.figures import percentile
from interop.table import replace_between

T = TypeVar("T")
PAGE = machine.ROOT / "docs" / "performance.md"
# Name -> where its class is. A module imports its client, which may not be installed.
PEERS = {
    "dledger": "benchmarks.peers.dledger_cluster:Dledger",
    "rabbitmq": "benchmarks.peers.rabbitmq:RabbitMQ",
    "nats-synced": "benchmarks.peers.nats_jetstream:NatsSynced",
    "nats": "benchmarks.peers.nats_jetstream:NatsDebian",
    "redis": "benchmarks.peers.redis_streams:RedisStreams",
    "apache": "benchmarks.peers.apache_rocketmq:ApacheRocketMQ",
}
LIMIT = "limit"
LIMIT_FACTS = {"title": "limit program", "consensus": "none", "synced": "a majority's"}
WINDOW = 1000
SINGLE_MIN = 2000
CASE_S = 60.0  # longest that a case may take beyond its own time
KILL_S = 90.0
STARTS_MAX = 2


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much is measured in each round; times in seconds."""

    rounds: int = 3
    idle_s: float = 2.0
    warm_up_s: float = 1.5
    load_s: float = 2.5
    latency_s: float = 2.0
    java_s: float = 3.0
    single_messages: int = 60_000
    kills: int = 1
    limit_megabytes: int = 300


QUICK = Sizes(
    rounds=1,
    idle_s=0.2,
    warm_up_s=0.2,
    load_s=0.3,
    latency_s=0.2,
    java_s=1.0,
    single_messages=2000,
    kills=1,
    limit_megabytes=20,
)


def load(name: str) -> Peer | str:
    """Returns a peer, or why it cannot run here."""
    module, _, kind = PEERS[name].partition(":")
    try:
        peer: Peer = getattr(importlib.import_module(module), kind)()
    except ImportError as error:
        return f"{error}: run benchmarks/peers/setup.sh"
    return peer.missing() or peer


def run(case: Coroutine[Any, Any, T], timeout_s: float = CASE_S) -> T:
    """Runs a case in a loop of its own, of the kind that all peers get."""
    import uvloop

    gc.collect()
    return uvloop.run(asyncio.wait_for(case, timeout_s))


class Round:
    """The cases of one peer, one after the other, against a cluster of its own."""

    def __init__(self, name: str, peer: Peer, sizes: Sizes, results: Results) -> None:
        self._name, self._peer, self._sizes, self._results = name, peer, sizes, results
        self._published = 0

    def run(self) -> None:
        """Starts the peer, measures all cases and stops it. A case that fails is noted."""
        with tempfile.TemporaryDirectory(
            prefix="dledger-peers-", ignore_cleanup_errors=True
        ) as directory:
            try:
                place = self._start(Path(directory))
                self._case("memory of a node, idle", self._idle)
                self._case("warm-up", self._warm_up)
                self._case("publish, 128 B", lambda: self._publish(128))
                self._case("publish, 1 KiB", lambda: self._publish(1024))
                self._case("publish, one after the other", self._latency)
                if isinstance(self._peer, RemotingPeer):
                    remoting = self._peer
                    self._case("one message a request", lambda: self._one_a_request(remoting))
                self._case("consume, each acknowledged", lambda: self._consume(1))
                self._case("consume, per 100", lambda: self._consume(100))
                if isinstance(self._peer, RemotingPeer):
                    self._case("Apache's Java client", lambda: self._java(remoting, place))
                self._case("memory of a node, peak", self._peak)
                for number in range(self._sizes.kills):
                    self._case("kill -9 of the leader", lambda n=number: self._kill(n))
            except Exception as error:
                self._failed("start", error)
            finally:
                self._case("stop", self._peer.stop)

    def _start(self, directory: Path) -> Path:
        """Starts the peer, a second time if somebody has just taken a port; returns its place."""
        for attempt in range(STARTS_MAX):
            place = directory / f"start-{attempt}"
            place.mkdir()
            started = time.perf_counter()
            try:
                self._peer.start(place)
            except Exception as error:
                if attempt == STARTS_MAX - 1:
                    raise
                say(f"{self._name}: starting again: {error}")
                self._peer.stop()
            else:
                break
        say(f"{self._name}: up in {time.perf_counter() - started:.1f} s")
        return place

    def _case(self, what: str, measure: Callable[[], None]) -> None:
        try:
            measure()
        except Exception as error:
            self._failed(what, error)

    def _failed(self, what: str, error: Exception) -> None:
        traceback.print_exception(error)
        problem = f"{self._name}: {what}: failed: {type(error).__name__}: {str(error)[:300]}"
        self._results.problems.append(problem)
        say(problem)

    def _add(self, name: str, figure: str, value: float) -> None:
        sample = Sample(self._name, name, figure, value)
        self._results.samples.append(sample)
        say(json.dumps(sample._asdict()))

    def _processor_s(self) -> float:
        return sum(single.cpu_seconds(pid) for pid in self._peer.nodes().values())

    def _idle(self) -> None:
        time.sleep(self._sizes.idle_s)
        self._memory("memory of a node, idle", peak=False)

    def _peak(self) -> None:
        self._memory("memory of a node, peak", peak=True)

    def _memory(self, name: str, *, peak: bool) -> None:
        pids = self._peer.nodes().values()
        self._add(name, "MB", max(memory_mb(pid, peak=peak) for pid in pids))

    def _warm_up(self) -> None:
        self._send("warm-up", 128, self._sizes.warm_up_s * self._peer.warm_up)

    def _send(self, topic: str, size: int, seconds: float) -> Done:
        peer = self._peer

        async def send() -> Done:
            await peer.create(topic)
            return await peer.publish(topic, b"x" * size, WINDOW, seconds)

        return run(send(), CASE_S + seconds)

    def _publish(self, size: int) -> None:
        servers, client = self._processor_s(), time.process_time()
        done = self._send(f"publish-{size}", size, self._sizes.load_s)
        servers, client = self._processor_s() - servers, time.process_time() - client
        name = "publish, window 1,000, " + ("1 KiB" if size == 1024 else f"{size} B")
        self._add(name, "messages_per_s", done.rate)
        each = 1e6 / max(1, done.messages)
        self._add(name, "servers' processor time, µs a message", servers * each)
        self._add(name, "client's processor time, µs a message", client * each)
        self._published = done.messages

    def _latency(self) -> None:
        peer, seconds, body = self._peer, self._sizes.latency_s, b"x" * 1024

        async def send_in_turn() -> list[float]:
            await peer.create("latency")
            found: list[float] = []
            async with peer.publisher("latency") as send:
                for _ in range(10):
                    await send(body)
                end = time.perf_counter() + seconds
                while (begun := time.perf_counter()) < end:
                    await send(body)
                    found.append(time.perf_counter() - begun)
            return sorted(found)

        found = run(send_in_turn())
        name = "publish, one after the other, 1 KiB"
        self._add(name, "p50_ms", percentile(found, 0.5) * 1000)
        self._add(name, "p99_ms", percentile(found, 0.99) * 1000)

    def _one_a_request(self, peer: RemotingPeer) -> None:
        # As many as a slow peer manages in about the time of the other loads.
        count = max(SINGLE_MIN, min(self._sizes.single_messages, self._published))
        case = peer.one_a_request("single", 1024, count)
        rate = asyncio.run(asyncio.wait_for(case, CASE_S))  # it is not made for uvloop
        self._add("publish, one message a request, window 1,000, 1 KiB", "messages_per_s", rate)

    def _consume(self, each: int) -> None:
        # A queue forgets what was acknowledged: each way gets its own part of the backlog.
        count = self._published * 2 // 5
        if count == 0:
            raise RuntimeError("there is no backlog")
        seconds = self._sizes.load_s * 2
        done = run(self._peer.consume("publish-1024", count, seconds, each), CASE_S + seconds)
        if done.messages < count and done.seconds < seconds:
            raise RuntimeError(f"only {done.messages} of {count} messages came")
        how = "each acknowledged" if each == 1 else f"acknowledged per {each}"
        self._add(f"consume a backlog, 1 KiB, {how}", "messages_per_s", done.rate)

    def _java(self, peer: RemotingPeer, directory: Path) -> None:
        if reason := no_java():
            problem = f"{self._name}: Apache's Java client: cannot run here: {reason}"
            self._results.problems.append(problem)
            return
        asyncio.run(peer.create("java"))
        rate = peer.java_client(directory, "java", 1024, self._sizes.java_s)
        self._add("publish, Apache's Java client, 64 threads, 1 KiB", "messages_per_s", rate)

    def _kill(self, number: int) -> None:
        peer, topic, body = self._peer, f"kill-{number}", b"x" * 1024
        if number:  # nobody needs the node that was killed last
            peer.revive()

        async def kill() -> float:
            await peer.create(topic)
            async with peer.publisher(topic, killing=True) as send:
                for _ in range(20):
                    await until_confirmed(send, body)
                killed_at = await peer.kill_leader(topic)
                await until_confirmed(send, body)
                return time.perf_counter() - killed_at

        self._add("kill -9 of the leader to the next acknowledgement", "s", run(kill(), KILL_S))


def measure(
    names: list[str],
    sizes: Sizes,
    minutes: float,
    keep: Callable[[Results], None] = lambda _: None,
) -> Results:
    """Measures peers in turns, each alone; every other round in the opposite order.

    Begins no round that would probably end later than so many minutes from now. What is known
    after a round goes to `keep`.
    """
    results = Results()
    peers: dict[str, Peer] = {}
    for name in names:
        found = load(name)
        if isinstance(found, str):
            results.problems.append(f"{name}: cannot run here: {found}")
            say(results.problems[-1])
            continue
        peers[name] = found
        results.facts[name] = {
            "title": found.title,
            "version": found.version(),
            "consensus": found.consensus,
            "synced": found.synced,
            "client": found.client,
        }
    results.facts[LIMIT] = LIMIT_FACTS
    began = time.monotonic()
    for number in range(sizes.rounds):
        used = time.monotonic() - began
        if number and used + used / number > minutes * 60:
            results.problems.append(
                f"only {number} of {sizes.rounds} rounds fit {minutes:g} minutes"
            )
            break
        results.rounds += 1
        order = list(peers) if number % 2 == 0 else list(reversed(peers))
        say(f"round {number + 1} of {sizes.rounds}: {', '.join(order)}")
        for name in order:
            Round(name, peers[name], sizes, results).run()
        ceiling = limit.measure(sizes.limit_megabytes, 64 * 1024, WINDOW * 1024)
        name = "publish, window 1,000, 1 KiB"
        results.samples.append(Sample(LIMIT, name, "messages_per_s", ceiling["messages_1k_per_s"]))
        keep(results)
    return results


def say(text: str) -> None:
    """Prints a line of progress; the table alone goes to standard output."""
    print(text, file=sys.stderr, flush=True)


def run_all(options: argparse.Namespace) -> dict[str, Any]:
    """Measures what was asked for; returns what is in the file, which has every round at once."""
    about, began = machine.facts(), time.monotonic()
    content: dict[str, Any] = {}

    def keep(results: Results) -> None:
        content.update(
            machine=about,
            rounds=results.rounds,
            minutes=round((time.monotonic() - began) / 60, 1),
            problems=results.problems,
            lines=report.lines(results),
        )
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")

    sizes = dataclasses.replace(Sizes(), rounds=options.rounds, kills=options.kills)
    sizes = QUICK if options.quick else sizes
    keep(measure(options.peer or list(PEERS), sizes, options.minutes, keep))
    return content


def main() -> int:
    """Measures, prints the table and writes it as JSON, and into the docs if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peer", action="append", choices=PEERS, help="all by default")
    parser.add_argument("--quick", action="store_true", help="small: does everything run?")
    parser.add_argument("--rounds", type=int, default=Sizes.rounds)
    parser.add_argument("--kills", type=int, default=Sizes.kills, help="in each round")
    parser.add_argument(
        "--minutes", type=float, default=15.0, help="begin no round that ends later"
    )
    parser.add_argument("--json", type=Path, default=machine.ROOT / "build" / "peers.json")
    parser.add_argument("--from", dest="earlier", type=Path, help="show this run's, measure none")
    parser.add_argument("--write", action="store_true", help="the table into docs/performance.md")
    options = parser.parse_args()
    machine.stop_when_told()
    if options.earlier:
        content = json.loads(options.earlier.read_text())
    else:
        content = run_all(options)
    table = report.markdown(content["lines"], content["problems"])
    about = f"Medians (rounds: {content['rounds']}) on {machine.describe(content['machine'])}."
    print(f"{table}\n\n{about}")
    if options.write:
        page = replace_between(PAGE.read_text(), report.MARKER, f"{about}\n\n{table}")
        PAGE.write_text(page)
    return int(any(": failed: " in problem for problem in content["problems"]))


if __name__ == "__main__":
    sys.exit(main())
