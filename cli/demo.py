"""`dledger demo`: a replicated broker survives `kill -9` of its leader, before your eyes."""

from __future__ import annotations

import asyncio
import functools
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.cluster import LocalCluster, free_port_base
from cli.console import note, say, say_json
from cli.demo_check import Verdict, compare
from cli.errors import CommandError, ExitCode
from cli.layout import ClusterSpec
from cli.options import JsonOption
from dledger.errors import DLedgerError

if TYPE_CHECKING:
    from dledger.client.producer import AsyncProducer
    from dledger.client.results import SendResult

TOPIC = "demo"
QUEUES = 4
# Few enough that the kill comes while most messages are still to be sent.
IN_FLIGHT_MAX = 1000
_SEND_TIMEOUT_S = 60.0
_READ_IDLE_S = 2.0
_KILL_DELAY_S = 0.004


@dataclass(kw_only=True)
class Run:
    """What happened, by queue id, and when.

    Attributes:
        resent: Messages acknowledged after an attempt of unknown outcome.
        pause_from, pause_to: The longest time without an acknowledgement since the kill.
    """

    sent: dict[int, list[int]] = field(default_factory=lambda: {q: [] for q in range(QUEUES)})
    acknowledged: dict[int, list[int]] = field(
        default_factory=lambda: {q: [] for q in range(QUEUES)}
    )
    acknowledged_count: int = 0
    resent: int = 0
    failures: list[BaseException] = field(default_factory=list)
    killed_at: float | None = None
    last_at: float = 0.0
    pause_from: float = 0.0
    pause_to: float = 0.0
    half: int = 0
    half_done: asyncio.Event = field(default_factory=asyncio.Event)

    def settle(self, queue_id: int, number: int, future: asyncio.Future[SendResult]) -> None:
        """Notes the outcome of one send."""
        error = future.exception()
        if error is not None:
            self.failures.append(error)
            self._look_at_half()
            return
        now = time.monotonic()
        if self.killed_at is not None and now - self.last_at > self.pause_to - self.pause_from:
            self.pause_from, self.pause_to = max(self.last_at, self.killed_at), now
        self.last_at = now
        self.acknowledged[queue_id].append(number)
        self.acknowledged_count += 1
        self.resent += future.result().outcome_unknown_attempts > 0
        self._look_at_half()

    def _look_at_half(self) -> None:
        if self.acknowledged_count + len(self.failures) >= self.half:
            self.half_done.set()

    @property
    def failover_ms(self) -> float | None:
        """From the kill until writes went on after their longest standstill."""
        if self.killed_at is None or not self.pause_to:
            return None
        return (self.pause_to - self.killed_at) * 1000


def demo(
    messages: Annotated[
        int, typer.Option("--messages", min=100, max=10_000_000, help="How many to send.")
    ] = 20_000,
    json_output: JsonOption = False,
) -> None:
    """Start three replicas, send numbered messages, kill the leader in the middle, count.

    Everything happens in a temporary directory on free ports. The last line is JSON. Exit code 4
    if a message that was acknowledged is lost, there twice or out of order.
    """
    tell: Callable[[str], None] = (lambda text: None) if json_output else say
    directory = Path(tempfile.mkdtemp(prefix="dledger-demo-"))
    keep = False
    try:
        began = time.monotonic()
        spec = ClusterSpec(port_base=free_port_base(ClusterSpec().port_count))
        tell("starting a nameserver and three replicas ...")
        with LocalCluster(directory, spec) as cluster:
            tell(f"  ready after {time.monotonic() - began:.2f} s")
            result, verdict = _run(cluster, messages, tell)
        result["seconds"] = round(time.monotonic() - began, 2)
        if verdict.is_violation:
            keep = True
            note(f"error: a promise was broken: {verdict}; the logs are in {directory}")
        say_json(result)
        if verdict.is_violation:
            raise typer.Exit(ExitCode.VIOLATION)
        if result["acknowledged"] < messages:
            raise typer.Exit(ExitCode.UNKNOWN)
    except CommandError:
        keep = True
        note(f"the logs are in {directory}")
        raise
    finally:
        if not keep:
            shutil.rmtree(directory, ignore_errors=True)


def _run(
    cluster: LocalCluster, messages: int, tell: Callable[[str], None]
) -> tuple[dict[str, Any], Verdict]:
    before = cluster.leader()
    if before is None:
        raise CommandError("the cluster has no leader")
    tell(f"{before} leads; sending {messages:,} numbered messages to {QUEUES} queues ...")
    run = Run(half=messages // 2)
    asyncio.run(_produce(cluster, run, messages, before, tell))
    after = cluster.leader()
    failover_ms = run.failover_ms
    tell(f"{after} leads now; writes went on {failover_ms or 0:,.0f} ms after the kill")
    for failure in run.failures[:3]:
        note(f"not acknowledged: {failure}")
    tell("reading everything back ...")
    consumed = asyncio.run(_consume(cluster))
    verdict = compare(run.sent, run.acknowledged, consumed)
    tell(
        f"acknowledged {run.acknowledged_count:,}, read {verdict.consumed:,}, lost {verdict.lost}, "
        f"out of order {verdict.out_of_order}, twice {verdict.duplicates:,}"
        + (
            f" ({run.resent:,} were sent again: the leader died before it could answer)"
            if run.resent
            else ""
        )
    )
    result = {
        "acknowledged": run.acknowledged_count,
        "consumed": verdict.consumed,
        "lost": verdict.lost,
        "duplicates": verdict.duplicates,
        "out_of_order": verdict.out_of_order,
        "leader_before": before,
        "leader_after": after,
        "failover_ms": None if failover_ms is None else round(failover_ms, 1),
    }
    return result, verdict


async def _produce(
    cluster: LocalCluster, run: Run, messages: int, leader: str, tell: Callable[[str], None]
) -> None:
    from dledger.client.admin import AsyncAdmin
    from dledger.client.config import ProducerConfig
    from dledger.client.producer import AsyncProducer

    async with AsyncAdmin(nameserver=cluster.nameserver) as admin:
        await admin.create_topic(TOPIC, queue_count=QUEUES)
    config = ProducerConfig(send_timeout_s=_SEND_TIMEOUT_S, in_flight_max=IN_FLIGHT_MAX)
    async with AsyncProducer("demo", nameserver=cluster.nameserver, config=config) as producer:
        killer = asyncio.create_task(_kill_in_the_middle(cluster, run, leader, tell), name="killer")
        try:
            await _send_all(producer, run, messages)
            await producer.wait_idle()
            await killer
        finally:
            killer.cancel()


async def _send_all(producer: AsyncProducer, run: Run, messages: int) -> None:
    from dledger.message import Message

    for number in range(messages):
        queue_id = number % QUEUES
        await producer.wait_room()
        if number % IN_FLIGHT_MAX == 0:
            await asyncio.sleep(0)
        run.sent[queue_id].append(number)
        future = producer.send(Message(TOPIC, b"%d" % number), queue=queue_id)
        future.add_done_callback(functools.partial(run.settle, queue_id, number))


async def _kill_in_the_middle(
    cluster: LocalCluster, run: Run, leader: str, tell: Callable[[str], None]
) -> None:
    await run.half_done.wait()
    # The acknowledgements came in one go; by now the next batches are with the leader.
    await asyncio.sleep(_KILL_DELAY_S)
    count = run.acknowledged_count
    run.killed_at = time.monotonic()
    pid = await asyncio.to_thread(cluster.kill, leader)
    tell(f"  {count:,} acknowledged: kill -9 {pid} ({leader})")


async def _consume(cluster: LocalCluster) -> dict[int, list[int]]:
    """Reads every queue from its beginning until its end."""
    from dledger.client.pull_consumer import AsyncPullConsumer

    found: dict[int, list[int]] = {}
    async with AsyncPullConsumer("demo", nameserver=cluster.nameserver) as consumer:
        for queue in await consumer.queues(TOPIC):
            numbers = found.setdefault(queue.queue_id, [])
            end = await consumer.offset_max(queue)
            deadline = time.monotonic() + _SEND_TIMEOUT_S
            while await consumer.position(queue) < end:
                pulled = await consumer.pull(queue, timeout_s=_READ_IDLE_S, count_max=1000)
                numbers.extend(int(message.body) for message in pulled)
                if not pulled and time.monotonic() > deadline:
                    raise DLedgerError(f"{queue} cannot be read up to its end at {end}")
    return found
