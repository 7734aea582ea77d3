"""`dledger consume`: one message body a line, committed once it has been written out."""

from __future__ import annotations

import asyncio
import base64
import json
import signal
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import typer

from cli.console import note
from cli.errors import UsageError
from cli.options import JsonOption, NameserverOption, nameservers
from dledger.model import ConsumeFrom

if TYPE_CHECKING:
    from dledger.message import ReceivedMessage

# Longer than any run: we commit ourselves, always after what is committed has been written out.
_NEVER_S = 1e8
_COMMIT_S = 1.0
_POLL_S = 0.1
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
        self.buffer += _json_line(message) if self.as_json else message.body
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
                break
            if now - committed >= _COMMIT_S:
                output.flush()
                await consumer.commit()
                committed = now
        output.flush()
        await consumer.commit()


def _json_line(message: ReceivedMessage) -> bytes:
    content: dict[str, object] = {
        "message_id": message.message_id,
        "topic": message.topic,
        "broker_name": message.broker_name,
        "queue_id": message.queue_id,
        "queue_offset": message.queue_offset,
        "tags": message.tags,
        "keys": message.keys,
        "properties": message.properties,
        "born_timestamp_ms": message.born_timestamp_ms,
        "store_timestamp_ms": message.store_timestamp_ms,
        "reconsume_times": message.reconsume_times,
    }
    try:
        content["body"] = message.body.decode()
    except UnicodeDecodeError:
        content["body_base64"] = base64.b64encode(message.body).decode()
    return json.dumps(content, ensure_ascii=False).encode()
