"""The history of a run: what clients did and saw, what was broken meanwhile, one JSON line each.

A history is a text file of JSON lines. Every line is one record; its `type` says which. Lines may
come in any order (usually the order in which operations ended), except that `meta` comes first.
Unknown fields are ignored and defaults are left out, so both directions of change stay readable.

**Times** (`inv`, `ret`, `t`) are nanoseconds of one monotonic clock (`time.monotonic_ns()`; the
virtual clock in the simulator). All processes of one machine share it, in every network namespace.

**Operations** have `process`, `inv`, `ret` and `status`:

* `ok`: it took effect between `inv` and `ret`.
* `fail`: it certainly had no effect and never will (`DLedgerError.definite`).
* `info`: nobody knows. It may take effect at any time after `inv`, even after `ret`, or never.
  `ret` is then when the client gave up (for the timeline only). The client that goes on must take a
  new `process` number: a process has at most one operation open at a time.

**Values** identify *attempts*: each append writes a value that no other append of the run writes.
An integer of 63 bits is best (`make_value(process, sequence)`: stored in 8 bytes and found fast); a
string works too. A retry with a new body has a new value and, if the broker dedupes it, the same
`key` (see `Append.key`). A retry that sends the same bytes again (our client's automatic retry) is
one operation from the first attempt's `inv` to the last answer.

**Queues** are named by `queue_name(topic, broker_name, queue_id)`; each is one log, dense from 0.

| type | record | written by |
| --- | --- | --- |
| `meta` | what was run and what must hold for a verdict | every run, first line |
| `append` `append_batch` `read` | the log, rules C1-C5 | W1, W2, and final reads |
| `group` `assign` `revoke` `deliver` `done` `dead` | consumers, rules D1-D4, D7-D10 | W2-W6 |
| `commit` `fetch` | committed offsets (a max-register, or any register) | W3 |
| `send` `recall` | a message without a known offset (delayed: rule D6) | W5 |
| `half` `resolve` `check_back` | transactions, rule D5 | W4 |
| `call` | compare-and-set objects, locks, configuration: searched (WGL) | W7 |
| `fault` `phase` `note` | the bands of the timeline; proof that a fault bit | nemeses, runner |
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, TypeAlias

import msgspec

from dledger.errors import DLedgerError

FORMAT_VERSION = 1
LINE_BYTES_MAX = 64 * 1024 * 1024

Value: TypeAlias = int | str
Status: TypeAlias = Literal["ok", "info", "fail"]

_MASK_64 = (1 << 64) - 1


class HistoryFormatError(DLedgerError):
    """A line of a history file is not a record of this format."""

    definite = True

    def __init__(self, path: str, line: int, reason: str) -> None:
        super().__init__(f"{path}:{line}: {reason}")
        self.path = path
        self.line = line
        self.reason = reason


class Record(msgspec.Struct, omit_defaults=True, gc=False, kw_only=True, tag_field="type"):
    """Base of all lines."""


# --- what was run -------------------------------------------------------------------------------


class Meta(Record, tag="meta"):
    """First line: what was run, and what a verdict needs in order not to be `unknown`."""

    version: int = FORMAT_VERSION
    workload: str = ""  # "W1" ... "W7", or any name
    nemeses: list[str] = []  # as asked for: ["F1", ...]; each must appear as a fault that bit
    seed: int | None = None
    replicas: int = 0
    nodes: list[
        str
    ] = []  # every node that owes a full final read of every queue; [] = one is enough
    started_unix_ms: int | None = None  # for people; nothing is computed from it
    versions: dict[str, str] = {}
    details: dict[str, Any] = {}
    # What a verdict needs. Fewer acknowledgements than these: `unknown`, never `valid`.
    acks_min: int = 1  # over the whole run
    acks_in_faults_min: int = 0  # with inv inside any fault interval
    final_read_required: bool = True  # of every queue with an acknowledged append, after `final`
    # What is promised, where it depends on the configuration.
    read_your_writes: bool = False  # of `eventual` reads, per process
    replicated_low: bool = False  # min offsets are one counter; False: each node trims by itself
    equal_final_reads: bool = True  # every final read of a queue must show the same log
    commits_monotonic: bool = True  # committed offsets are a max-register; False: search them
    commit_window: int | None = None  # D2: offsets redelivered below the committed one, None = any
    two_owners_ms: int = 5000  # D7: how long a queue may have two owners, unless it is ordered
    duplicates_max: int | None = None  # D7: per group; None = any number that has a cause
    delay_tolerance_ms: int = 0  # D6: injected clock skew; the report says so when not 0
    check_back_after_ms: int = 0  # D5: no check-back sooner than this after the half message
    check_back_grace_ms: int = 2000  # D5: one already on its way when the transaction ended


# --- the log ------------------------------------------------------------------------------------


class Append(Record, tag="append"):
    """One message sent to one queue.

    `offset` is the queue offset of the acknowledgement (`ok` only). `key` names the message of an
    idempotent producer: all attempts with one key must end at one offset, and an acknowledgement
    may report the offset that an earlier attempt got.
    """

    process: int
    queue: str
    value: Value
    inv: int
    ret: int
    status: Status
    offset: int | None = None
    key: str = ""
    node: str = ""  # asked, or that answered
    term: int | None = None
    tag: str = ""
    shard: str = ""  # ordering key: D3
    error: str = ""


class BatchAppend(Record, tag="append_batch"):
    """Messages that must enter one queue together; `offset` is the first one's."""

    process: int
    queue: str
    values: list[Value]
    inv: int
    ret: int
    status: Status
    offset: int | None = None
    node: str = ""
    term: int | None = None
    tag: str = ""
    shard: str = ""
    error: str = ""


class Read(Record, tag="read"):
    """A pull, a full read or a question for the length of one queue.

    What came back is the run of `values` beginning at offset `first` (default: `start`), or, when
    not consecutive, at `offsets`. A big read may keep only `count` and `sum` (`range_hash`)
    instead of values.

    `end` is the length of the log at the read (RocketMQ's max offset) if the answer tells it, and
    `low` its min offset. A question for the length is a read with `max=0` and `end`. `whole` says
    that an answer shorter than `max` means "there is no more" (else: any non-empty prefix).
    `out_of_range` reports the refusal of `start` below the min offset.

    Eventual reads of one `process` at one named `node` are a session, in which the log never
    shrinks: use a new process number after reconnecting. Without a `node` there is no session.
    """

    process: int
    queue: str
    inv: int
    ret: int
    status: Status
    start: int = msgspec.field(default=0, name="from")
    max: int = 0
    first: int | None = None
    values: list[Value] = []
    offsets: list[int] | None = None
    count: int | None = None
    sum: int | None = None
    end: int | None = None
    low: int | None = None
    whole: bool = False
    out_of_range: bool = False
    eventual: bool = False  # a follower's or unbarriered read: may be stale, never from the future
    final: bool = False  # part of the final full read of `node`, after all faults ended
    node: str = ""
    term: int | None = None
    error: str = ""


class Send(Record, tag="send"):
    """A message whose queue offset nobody is told, such as a delayed one: D1, D6, D8, D10."""

    process: int
    topic: str
    value: Value
    inv: int
    ret: int
    status: Status
    delay_ms: int = 0
    key: str = ""
    tag: str = ""
    shard: str = ""
    node: str = ""
    error: str = ""


# --- consumers ----------------------------------------------------------------------------------


class Group(Record, tag="group"):
    """What a consumer group subscribes to and is promised.

    Write it before the group's first event, and again, with `drained`, when the drain ended: the
    later line wins.
    """

    group: str
    topics: list[str]
    tags: list[str] = []  # [] = every message
    ordered: bool = False  # D4, and D3 per queue without exception
    broadcast: bool = False  # D9: every consumer listed gets everything
    consumers: list[str] = []  # of a broadcast group
    max_attempts: int | None = None  # D8: deliveries before the dead-letter queue
    drained: bool | None = None  # D1: the drain ended with all progress shown (True), in time-out


class Assign(Record, tag="assign"):
    """A consumer begins to own a queue. `offset` is where it will begin, `token` fences it."""

    group: str
    consumer: str
    queue: str
    t: int
    offset: int | None = None
    token: int | None = None


class Revoke(Record, tag="revoke"):
    """A consumer stopped owning a queue, or is known dead (`reason`: rebalance, closed, killed)."""

    group: str
    consumer: str
    queue: str
    t: int
    reason: str = ""


class Deliver(Record, tag="deliver"):
    """The application got one message, at time `t`, before it did anything with it.

    `attempt` counts from 1 as the broker reports it (reconsume times + 1). `queue` is the queue
    from which it was pulled: a retried message comes from `%RETRY%group@broker/0`.
    """

    group: str
    consumer: str
    queue: str
    offset: int
    value: Value
    t: int
    attempt: int = 1
    key: str = ""
    shard: str = ""
    node: str = ""


class Done(Record, tag="done"):
    """The application ended with a delivered message: `ok`, or `retry` (exception, later)."""

    group: str
    consumer: str
    queue: str
    offset: int
    value: Value
    t: int
    result: Literal["ok", "retry", "suspend"] = "ok"


class Dead(Record, tag="dead"):
    """A message was found in the group's dead-letter queue."""

    group: str
    value: Value
    t: int
    queue: str = ""
    offset: int = -1


class Commit(Record, tag="commit"):
    """A consumer stores the offset of the next message wanted; `token` is its fencing token."""

    process: int
    group: str
    queue: str
    offset: int
    inv: int
    ret: int
    status: Status
    consumer: str = ""
    token: int | None = None
    node: str = ""
    error: str = ""


class Fetch(Record, tag="fetch"):
    """A consumer asks for the stored offset; `offset` is None if the group has none yet."""

    process: int
    group: str
    queue: str
    inv: int
    ret: int
    status: Status
    offset: int | None = None
    consumer: str = ""
    node: str = ""
    error: str = ""


# --- transactions and small objects -------------------------------------------------------------


class Half(Record, tag="half"):
    """A half (prepared) message: `value` is also the name of its transaction."""

    process: int
    topic: str
    value: Value
    inv: int
    ret: int
    status: Status
    tag: str = ""
    node: str = ""
    error: str = ""


class Resolve(Record, tag="resolve"):
    """The end of a transaction; `check_back` says that it answers a check-back."""

    process: int
    value: Value
    decision: Literal["commit", "rollback"]
    inv: int
    ret: int
    status: Status
    check_back: bool = False
    node: str = ""
    error: str = ""


class Recall(Record, tag="recall"):
    """A delayed message is taken back before its time."""

    process: int
    value: Value
    inv: int
    ret: int
    status: Status
    node: str = ""
    error: str = ""


class CheckBack(Record, tag="check_back"):
    """The broker asked a producer about an undecided transaction."""

    process: int
    value: Value
    t: int
    node: str = ""


class Call(Record, tag="call"):
    """One operation on a small object, judged by a search for a legal order.

    `model` is one of `checkers.models.MODELS`; `object` is the instance (histories are split by
    it); `f`, `args` and `result` are as that model describes.
    """

    process: int
    model: str
    object: str
    f: str
    inv: int
    ret: int
    status: Status
    args: list[Any] = []
    result: Any = None
    node: str = ""
    error: str = ""


# --- faults and notes ---------------------------------------------------------------------------


class Fault(Record, tag="fault"):
    """A fault from `inv` to `ret`.

    Write one line when it begins (`ret` None) and one with the same `id` when it ended: the later
    line wins, so a history cut short still shows it. `bit` is True only with `proof` (packets
    dropped, a term that changed, a process found dead, ...), False if the proof says that nothing
    happened, None if nobody looked.
    """

    id: int
    name: str  # "F1", "isolate-leader"
    inv: int
    ret: int | None = None
    targets: list[str] = []
    bit: bool | None = None
    proof: dict[str, Any] = {}
    details: dict[str, Any] = {}


class Phase(Record, tag="phase"):
    """The run entered a phase: `setup`, `load`, `heal`, `drain`, `final`, `end`."""

    name: str
    t: int


class Note(Record, tag="note"):
    """Anything for the timeline: a leader elected, a node started, a term."""

    name: str
    t: int
    node: str = ""
    details: dict[str, Any] = {}


AnyRecord: TypeAlias = (
    Meta
    | Append
    | BatchAppend
    | Read
    | Send
    | Group
    | Assign
    | Revoke
    | Deliver
    | Done
    | Dead
    | Commit
    | Fetch
    | Half
    | Resolve
    | Recall
    | CheckBack
    | Call
    | Fault
    | Phase
    | Note
)


# --- names, values, sums ------------------------------------------------------------------------


def make_value(process: int, sequence: int) -> int:
    """Returns a 63-bit value that is unique if (process, sequence) is.

    Raises:
        ValueError: `process` is not below 2**27, or `sequence` not below 2**36.
    """
    if not (0 <= process < 1 << 27 and 0 <= sequence < 1 << 36):
        raise ValueError(f"no value for process {process}, sequence {sequence}")
    return process << 36 | sequence


def queue_name(topic: str, broker_name: str, queue_id: int) -> str:
    """Returns the name of a queue in histories: `orders@broker-a/3`."""
    return f"{topic}@{broker_name}/{queue_id}"


def topic_of(queue: str) -> str:
    """Returns the topic of a queue named by `queue_name`."""
    return queue.partition("@")[0].partition("/")[0]


def element_hash(offset: int, value: int) -> int:
    """Returns the 64-bit hash of one (offset, integer value) for the sums of big reads."""
    mixed = (value * 0x9E3779B97F4A7C15 + offset * 0xD1B54A32D192ED03) & _MASK_64
    mixed = (mixed ^ (mixed >> 29)) * 0xBF58476D1CE4E5B9 & _MASK_64
    return mixed ^ (mixed >> 32)


def range_hash(first: int, values: Iterable[int]) -> int:
    """Returns `Read.sum` of consecutive integer values beginning at offset `first`."""
    return sum(element_hash(offset, value) for offset, value in enumerate(values, first)) & _MASK_64


# --- files --------------------------------------------------------------------------------------

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[AnyRecord] = msgspec.json.Decoder(AnyRecord)


def encode_record(record: Record) -> bytes:
    """Returns one line, without its newline."""
    return _encoder.encode(record)


def decode_record(line: bytes) -> AnyRecord:
    """Reads one line.

    Raises:
        msgspec.DecodeError: It is not JSON, or not a record of this format.
    """
    return _decoder.decode(line)


class HistoryWriter:
    """Appends records to a file. For one thread (an event loop); not safe for several.

    Lines are buffered by the file object: `flush` them at the beginning and end of every fault, so
    that a run that dies leaves a history that can be judged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records = 0
        self._buffer = bytearray()
        self._file: IO[bytes] = path.open("wb", buffering=256 * 1024)

    def write(self, record: Record) -> None:
        """Adds one record."""
        buffer = self._buffer
        _encoder.encode_into(record, buffer)
        buffer += b"\n"
        self._file.write(buffer)
        self.records += 1

    def flush(self) -> None:
        """Hands all lines written so far to the operating system."""
        self._file.flush()

    def close(self) -> None:
        """Flushes and closes the file."""
        self._file.close()

    def __enter__(self) -> HistoryWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def read_history(path: Path) -> Iterator[AnyRecord]:
    """Yields the records of a file one by one; memory does not grow with its length.

    An empty line counts and is skipped. The last line may be torn (the run was killed while it
    wrote): it is then left out.

    Raises:
        HistoryFormatError: A line is not a record, or longer than `LINE_BYTES_MAX`.
        OSError: The file cannot be read.
    """
    decode = _decoder.decode
    with path.open("rb", buffering=1024 * 1024) as file:
        for number, line in enumerate(iter(partial(file.readline, LINE_BYTES_MAX), b""), 1):
            try:
                yield decode(line)
            except msgspec.DecodeError as error:
                if not line.strip():
                    continue
                if not line.endswith(b"\n") and len(line) < LINE_BYTES_MAX:
                    return
                raise HistoryFormatError(str(path), number, str(error)) from None
