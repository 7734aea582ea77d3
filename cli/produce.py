"""`dledger produce`: one message a line, in order per queue, through fail-overs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from cli.console import is_interactive, note, say, say_json
from cli.errors import CommandError, ExitCode, UsageError
from cli.lines import LineSet, LineSplitter
from cli.options import JsonOption, NameserverOption, nameservers
from dledger.codes import MESSAGE_BODY_BYTES_MAX
from dledger.errors import DLedgerError, InvalidParameterError, MessageRejectedError

if TYPE_CHECKING:
    from dledger.client.producer import AsyncProducer
    from dledger.client.results import SendResult

PRODUCER_GROUP = "dledger-cli"
INTERRUPTED = 130
_READ_BYTES = 256 * 1024
_PROGRESS_S = 0.2


@dataclass(kw_only=True)
class ProduceJob:
    """What to send, and how.

    Attributes:
        queue: Send everything to the queue of this id.
        shard_key: Send everything to this key's queue.
        batch: Most messages in one request.
        timeout_s: How long a message is tried, all retries included.
        keep_going: Read on after a message was given up.
    """

    topic: str
    nameserver: str
    queue: int | None = None
    shard_key: str | None = None
    tag: str = ""
    batch: int = 2000
    timeout_s: float = 60.0
    keep_going: bool = False


@dataclass(kw_only=True)
class ProduceCounts:
    """What became of the lines.

    Attributes:
        acknowledged: Stored on a majority.
        failed: Certainly not stored.
        unknown: Never acknowledged, but perhaps stored.
        resent: Acknowledged after an attempt of unknown outcome.
        deduplicated: How many of these the first attempt had stored, as the broker noticed.
        twice: Perhaps stored twice: sent again to a broker that does not notice.
    """

    lines: int = 0
    acknowledged: int = 0
    failed: LineSet = field(default_factory=LineSet)
    unknown: LineSet = field(default_factory=LineSet)
    resent: int = 0
    deduplicated: int = 0
    twice: LineSet = field(default_factory=LineSet)
    first_error: str = ""
    gave_up: bool = False
    interrupted: bool = False
    pause_max_s: float = 0.0
    began: float = field(default_factory=time.monotonic)
    last_acknowledged: float | None = None
    ended: float | None = None

    def settle(self, number: int, future: asyncio.Future[SendResult]) -> None:
        """Counts the outcome of one line."""
        error = future.exception()
        if error is None:
            now = time.monotonic()
            if self.last_acknowledged is not None:
                self.pause_max_s = max(self.pause_max_s, now - self.last_acknowledged)
            self.last_acknowledged = now
            self.acknowledged += 1
            result = future.result()
            if result.outcome_unknown_attempts:
                self.resent += 1
                self.deduplicated += result.deduplicated
                if result.may_be_twice:
                    self.twice.add(number)
        elif isinstance(error, DLedgerError):
            self.refuse(number, error)
        else:
            raise error

    def refuse(self, number: int, error: DLedgerError) -> None:
        """Counts a line that was given up."""
        (self.failed if error.definite else self.unknown).add(number)
        self.first_error = self.first_error or f"line {number}: {error}"
        # A line that can never be a message is left out; anything else would make a gap.
        self.gave_up = self.gave_up or not isinstance(error, MessageRejectedError)

    @property
    def seconds(self) -> float:
        """How long it took, or takes so far."""
        return (self.ended or time.monotonic()) - self.began

    @property
    def exit_code(self) -> int:
        """Unknown outcomes weigh more than certain failures, these more than an early end."""
        if self.unknown.count:
            return ExitCode.UNKNOWN
        if self.failed.count:
            return ExitCode.FAILED
        return INTERRUPTED if self.interrupted else ExitCode.DONE

    def to_json(self) -> dict[str, Any]:
        """Returns the form that `--json` prints; lines are ranges [start, stop) from 1."""
        return {
            "lines": self.lines,
            "interrupted": self.interrupted,
            "acknowledged": self.acknowledged,
            "failed": self.failed.count,
            "unknown": self.unknown.count,
            "resent": self.resent,
            "deduplicated": self.deduplicated,
            "possible_duplicates": self.twice.count,
            "failed_lines": self.failed.ranges(),
            "unknown_lines": self.unknown.ranges(),
            "possible_duplicate_lines": self.twice.ranges(),
            "longest_pause_ms": round(self.pause_max_s * 1000, 1),
            "seconds": round(self.seconds, 3),
            "messages_per_second": round(self.acknowledged / max(self.seconds, 1e-9)),
        }

    def to_text(self) -> str:
        """Returns the line that a person reads at the end."""
        text = (
            f"acknowledged {self.acknowledged:,}  failed {self.failed.count:,}  "
            f"unknown {self.unknown.count:,}  in {self.seconds:.1f} s "
            f"({self.acknowledged / max(self.seconds, 1e-9):,.0f}/s, "
            f"longest pause {self.pause_max_s * 1000:,.0f} ms)"
        )
        if self.interrupted:
            text += f"\nstopped after line {self.lines:,}"
        if self.resent:
            text += f"\n{self.resent:,} were sent again after an unknown outcome"
            text += f" ({self.deduplicated:,} were there already): "
            count = self.twice.count
            text += f"{count:,} may be there twice" if count else "each is there once"
        return text


def produce(
    topic: Annotated[str, typer.Argument(metavar="TOPIC")],
    file: Annotated[str, typer.Argument(metavar="[FILE|-]", help="- reads standard input.")] = "-",
    queue: Annotated[
        int | None, typer.Option("--queue", min=0, help="Send everything to this queue.")
    ] = None,
    shard_key: Annotated[
        str | None, typer.Option("--shard-key", help="Send everything to this key's queue.")
    ] = None,
    tag: Annotated[str, typer.Option("--tag", help="Tag of every message.")] = "",
    batch: Annotated[
        int, typer.Option("--batch", min=1, max=10_000, help="Most messages in one request.")
    ] = 2000,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0.1, help="Seconds a message is tried.")
    ] = 60.0,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="Go on after a message was given up.")
    ] = False,
    nameserver: NameserverOption = None,
    json_output: JsonOption = False,
) -> None:
    """Send one message a line, without its newline, in order per queue.

    Ends with how many were acknowledged (on the disks of a majority), failed (certainly not
    stored) and unknown. Exit code 0: all acknowledged; 1: some failed; 3: some unknown.
    """
    if queue is not None and shard_key is not None:
        raise UsageError("give --queue or --shard-key, not both")
    _check_topic(topic)
    job = ProduceJob(
        topic=topic,
        nameserver=nameservers(nameserver),
        queue=queue,
        shard_key=shard_key,
        tag=tag,
        batch=batch,
        timeout_s=timeout,
        keep_going=keep_going,
    )
    with open_input(file) as source:
        counts = asyncio.run(run_produce(job, source))
    if json_output:
        say_json({"topic": topic, **counts.to_json()})
    else:
        say(counts.to_text())
    if counts.first_error:
        note(f"error: {counts.first_error}")
    if counts.exit_code:
        raise typer.Exit(counts.exit_code)


def _check_topic(name: str) -> None:
    """Refuses a topic name that no message can have, before any input is read."""
    from dledger.message import validate_topic

    try:
        validate_topic(name)
    except InvalidParameterError as error:
        raise UsageError(str(error)) from error


def open_input(file: str) -> BinaryIO:
    """Opens a file, or standard input for `-`.

    Raises:
        CommandError: It cannot be opened.
    """
    if file == "-":
        return sys.stdin.buffer
    try:
        return Path(file).open("rb", buffering=0)
    except OSError as error:
        raise CommandError(f"cannot read {file}: {error.strerror or error}") from error


async def run_produce(job: ProduceJob, source: BinaryIO) -> ProduceCounts:
    """Sends every line of a stream and waits for the outcome of each.

    Raises:
        DLedgerError: The producer could not be set up. Nothing was sent.
    """
    from dledger.client.config import ProducerConfig
    from dledger.client.producer import AsyncProducer

    config = ProducerConfig(send_timeout_s=job.timeout_s, batch_messages_max=job.batch)
    counts = ProduceCounts()
    stopping = asyncio.Event()

    def interrupt() -> None:
        if stopping.is_set():  # the second Ctrl-C does not wait for what is under way
            open_count = counts.lines - counts.acknowledged - counts.failed.count
            note(f"\nacknowledged {counts.acknowledged:,}, unknown {open_count:,}")
            os._exit(ExitCode.UNKNOWN)
        counts.interrupted = True
        stopping.set()

    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, interrupt)
    async with AsyncProducer(PRODUCER_GROUP, nameserver=job.nameserver, config=config) as producer:
        progress = asyncio.create_task(_show_progress(counts), name="progress")
        try:
            await _send_lines(job, producer, source, counts, stopping)
            await producer.wait_idle()
        finally:
            progress.cancel()
    counts.ended = time.monotonic()
    return counts


async def _send_lines(
    job: ProduceJob,
    producer: AsyncProducer,
    source: BinaryIO,
    counts: ProduceCounts,
    stopping: asyncio.Event,
) -> None:
    splitter = LineSplitter(MESSAGE_BODY_BYTES_MAX)
    stopped = asyncio.create_task(stopping.wait(), name="stop")
    try:
        while not stopping.is_set():
            reading = _read(source)
            either: set[asyncio.Future[Any]] = {reading, stopped}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                return
            data = reading.result()
            for body in splitter.feed(data) if data else splitter.finish():
                await producer.wait_room()
                if stopping.is_set() or (counts.gave_up and not job.keep_going):
                    return
                counts.lines += 1
                _send(job, producer, counts, body)
            if not data:
                return
    finally:
        stopped.cancel()


def _read(source: BinaryIO) -> asyncio.Future[bytes]:
    """Reads the next bytes in a thread: a pipe may make us wait while acknowledgements come.

    The thread is a daemon, so that a terminal on which nothing is typed does not keep us from
    ending.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[bytes] = loop.create_future()

    def deliver(data: bytes | None, error: OSError | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(CommandError(f"cannot read the input: {error.strerror}"))
        else:
            future.set_result(data or b"")

    def work() -> None:
        outcome: tuple[bytes | None, OSError | None]
        try:
            outcome = (os.read(source.fileno(), _READ_BYTES), None)
        except OSError as error:
            outcome = (None, error)
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(deliver, *outcome)

    threading.Thread(target=work, name="input", daemon=True).start()
    return future


def _send(
    job: ProduceJob, producer: AsyncProducer, counts: ProduceCounts, body: bytes | None
) -> None:
    from dledger.message import Message

    number = counts.lines
    if body is None:
        limit = MESSAGE_BODY_BYTES_MAX
        counts.refuse(number, MessageRejectedError(f"longer than {limit} bytes; left out"))
        return
    message = Message(job.topic, body, tags=job.tag)
    future = producer.send(message, queue=job.queue, shard_key=job.shard_key)
    future.add_done_callback(lambda done: counts.settle(number, done))


async def _show_progress(counts: ProduceCounts) -> None:
    if not is_interactive():
        return
    try:
        while True:
            await asyncio.sleep(_PROGRESS_S)
            still = time.monotonic() - (counts.last_acknowledged or counts.began)
            text = f"read {counts.lines:,}  acknowledged {counts.acknowledged:,}"
            if still > 1:
                text += f"  no answer for {still:.0f} s"
            sys.stderr.write(f"\r\x1b[K{text}")
            sys.stderr.flush()
    finally:
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()
