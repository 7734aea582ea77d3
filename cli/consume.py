"""`dledger consume`: one message body a line, committed once it has been written out."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import typer

from cli.console import note
from cli.errors import CommandError, UsageError
from cli.messages import json_line
from cli.options import JsonOption, NameserverOption, nameservers
from dledger.errors import DLedgerError, NotFoundError, OffsetOutOfRangeError
from dledger.model import ConsumeFrom, MessageQueue

if TYPE_CHECKING:
    from dledger.client.pull_consumer import AsyncPullConsumer
    from dledger.message import ReceivedMessage

# Longer than any run: we commit ourselves, always after what is committed has been written out.
_NEVER_S = 1e8
_COMMIT_S = 1.0
_LAST_COMMIT_S = 30.0
_ASSIGN_PATIENCE_S = 15.0
_POLL_S = 0.1
_PULL_COUNT = 1000
_OUT_BYTES = 64 * 1024


@dataclass(kw_only=True)
class ConsumeJob:
    """What to read.

    Attributes:
        queue: Only the queues of this id.
        count: Stop after so many messages; `None`: no limit.
        timeout_s: Stop when no message came for so long.
        as_json: One JSON object a line instead of the raw body.
    """

    topic: str
    group: str
    nameserver: str
    start: ConsumeFrom = ConsumeFrom.LATEST
    queue: int | None = None
    count: int | None = None
    timeout_s: float | None = None
    as_json: bool = False
    expression: str = "*"


@dataclass(kw_only=True)
class Output:
    """Bytes on their way to standard output.

    Invariant: an offset is committed only after the bytes of its message have been flushed.
    """

    as_json: bool = False
    count: int = 0
    body_bytes: int = 0
    buffer: bytearray = field(default_factory=bytearray)

    def write(self, message: ReceivedMessage) -> None:
        """Takes a message."""
        self.count += 1
        self.body_bytes += len(message.body)
        self.buffer += json_line(message) if self.as_json else message.body
        self.buffer += b"\n"
        if len(self.buffer) >= _OUT_BYTES:
            self.flush()

    def flush(self) -> None:
        """Hands everything to the operating system."""
        if self.buffer:
            sys.stdout.buffer.write(self.buffer)
            self.buffer.clear()
        sys.stdout.buffer.flush()


def consume(
    topic: Annotated[str, typer.Argument(metavar="TOPIC")],
    group: Annotated[str, typer.Option("--group", help="Consumer group; keeps the offsets.")],
    start: Annotated[
        str,
        typer.Option("--from", help="Where a group without offsets begins: earliest or latest."),
    ] = "latest",
    queue: Annotated[
        int | None, typer.Option("--queue", min=0, help="Read only this queue, from its start.")
    ] = None,
    count: Annotated[
        int | None, typer.Option("--count", min=1, help="Stop after so many messages.")
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option("--timeout", min=0.0, help="Stop after so many seconds without a message."),
    ] = None,
    tags: Annotated[str, typer.Option("--tags", help="Only these: a || b.")] = "*",
    format_: Annotated[
        str, typer.Option("--format", help="raw: the body; json: an object with everything.")
    ] = "raw",
    nameserver: NameserverOption = None,
    json_output: JsonOption = False,
) -> None:
    """Print one message a line and commit the group's offsets.

    Members of a group share the queues; with --queue one queue is read whoever else reads it.
    Ends at --count, after --timeout without a message, or at Ctrl-C; committed is what was
    printed.
    """
    starts = {"earliest": ConsumeFrom.EARLIEST, "latest": ConsumeFrom.LATEST}
    if start not in starts:
        raise UsageError(f"--from must be earliest or latest, not {start}")
    if format_ not in ("raw", "json"):
        raise UsageError(f"--format must be raw or json, not {format_}")
    job = ConsumeJob(
        topic=topic,
        group=group,
        nameserver=nameservers(nameserver),
        start=starts[start],
        queue=queue,
        count=count,
        timeout_s=timeout,
        as_json=format_ == "json" or json_output,
        expression=tags,
    )
    began = time.monotonic()
    output = Output(as_json=job.as_json)
    asyncio.run(run_consume(job, output))
    if not json_output:
        note(f"{output.count:,} messages in {time.monotonic() - began:.1f} s")


async def run_consume(job: ConsumeJob, output: Output) -> None:
    """Reads, writes out and commits until the job's end."""
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stopping.set)
    if job.queue is None:
        await _consume_share(job, output, stopping)
    else:
        await _consume_queue(job, output, stopping)


async def _consume_share(job: ConsumeJob, output: Output, stopping: asyncio.Event) -> None:
    """As a member of the group."""
    from dledger.client.config import PushConsumerConfig
    from dledger.client.push_consumer import AsyncPushConsumer

    consumer = AsyncPushConsumer(
        job.group,
        subscriptions={job.topic: job.expression},
        nameserver=job.nameserver,
        consume_from=job.start,
        config=PushConsumerConfig(commit_interval_s=_NEVER_S),
    )
    async with consumer:
        last = committed = time.monotonic()
        while not stopping.is_set() and (job.count is None or output.count < job.count):
            message = await consumer.poll(_POLL_S)
            now = time.monotonic()
            if message is not None:
                last = now
                output.write(message)
            elif job.timeout_s is not None and now - last >= job.timeout_s:
                if await consumer.wait_assigned(0.0):
                    break
                await _explain_nothing_assigned(job, now - last)
            if now - committed >= _COMMIT_S:
                output.flush()
                await _commit(consumer.commit, 0.0)
                committed = now
        output.flush()
        await _commit(consumer.commit, _LAST_COMMIT_S)


async def _explain_nothing_assigned(job: ConsumeJob, waited_s: float) -> None:
    """Tells a queue without messages from one that could not be read at all.

    Returns while there is hope: an election may be under way.

    Raises:
        DLedgerError: There is no such topic, nobody answers, or it has taken too long.
    """
    from dledger.client.pull_consumer import AsyncPullConsumer

    async with AsyncPullConsumer(job.group, nameserver=job.nameserver) as consumer:
        await consumer.queues(job.topic)
    if waited_s >= _ASSIGN_PATIENCE_S:
        raise CommandError(f"no queue of {job.topic} could be taken within {waited_s:.0f} s")


async def _consume_queue(job: ConsumeJob, output: Output, stopping: asyncio.Event) -> None:
    """One queue id, by explicit pulls: of each broker group that has it."""
    from dledger.client.pull_consumer import AsyncPullConsumer

    consumer = AsyncPullConsumer(job.group, nameserver=job.nameserver, consume_from=job.start)
    async with consumer:
        known = await consumer.queues(job.topic)
        queues = [queue for queue in known if queue.queue_id == job.queue]
        if not queues:
            ids = sorted({queue.queue_id for queue in known})
            raise NotFoundError(f"{job.topic} has no queue {job.queue}; its queues: {ids}")
        last = committed = time.monotonic()
        while not stopping.is_set() and (job.count is None or output.count < job.count):
            found = False
            for queue in queues:
                left = _PULL_COUNT if job.count is None else job.count - output.count
                if left > 0:
                    found = (
                        await _pull(consumer, queue, min(left, _PULL_COUNT), job, output) or found
                    )
            now = time.monotonic()
            if found:
                last = now
            elif job.timeout_s is not None and now - last >= job.timeout_s:
                break
            if now - committed >= _COMMIT_S:
                output.flush()
                await _commit(consumer.commit, 0.0)
                committed = now
        output.flush()
        await _commit(consumer.commit, _LAST_COMMIT_S)


async def _pull(
    consumer: AsyncPullConsumer,
    queue: MessageQueue,
    count_max: int,
    job: ConsumeJob,
    output: Output,
) -> bool:
    """Writes out the next messages of a queue; returns whether there were any."""
    try:
        messages = await consumer.pull(
            queue, count_max=count_max, timeout_s=_POLL_S, expression=job.expression
        )
    except OffsetOutOfRangeError as error:
        note(f"{queue.broker_name} queue {queue.queue_id}: {error}; goes on at its beginning")
        consumer.seek(queue, error.offset_min)
        return True
    for message in messages:
        output.write(message)
    return bool(messages)


async def _commit(commit: Callable[[], Awaitable[object]], patience_s: float) -> None:
    """Commits; an election may make it fail for a while, which only the last commit waits for.

    Raises:
        DLedgerError: The last commit did not succeed in time: what was printed may come again.
    """
    deadline = time.monotonic() + patience_s
    while True:
        try:
            await commit()
        except DLedgerError as error:
            if patience_s == 0.0 and error.retryable:
                return
            if not error.retryable or time.monotonic() >= deadline:
                raise
            await asyncio.sleep(_POLL_S)
        else:
            return
