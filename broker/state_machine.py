"""What committed log entries do to the state of a replica.

Applying is deterministic: it reads the entries and the store, no clock and no randomness, so all
replicas come to the same state. It is total: every command that our leader can write has an
effect or a defined refusal (as its result); anything else is a broken invariant and ends the
process rather than letting replicas drift apart.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from struct import Struct
from typing import Final, NamedTuple, Protocol, assert_never

from broker import timers_command
from broker.commands import (
    RAFT_TYPES_END,
    CheckDigest,
    CommandType,
    CommitOffsets,
    Control,
    DeleteGroup,
    DeleteTopic,
    PutGroup,
    PutTopic,
    TrimLog,
    TrimQueues,
    decode_control,
    offsets_of,
)
from broker.feature_commands import (
    FEATURE_TYPES,
    FeatureType,
    apply_feature,
    apply_rider,
    group_deleted,
    topic_deleted,
)
from broker.messages_command import KeyGroup, decode_messages
from broker.pop_state import Popped
from broker.riders import MESSAGES_WITH_RIDERS, decode_riders
from dledger.errors import StoreError, invariant
from dledger.model import TopicConfig
from store import state_keys as keys
from store.state_batch import WriteBatch
from store.state_store import StateStore

Buffer = bytes | bytearray | memoryview


class Entry(Protocol):
    """What is applied of a log entry; `dledger.raft.protocols.LogEntry` is one."""

    @property
    def index(self) -> int:
        """Position in the log."""
        ...

    @property
    def term(self) -> int:
        """The leader's term."""
        ...

    @property
    def body(self) -> Buffer:
        """The command."""
        ...


class MessagesApplied(NamedTuple):
    """Result of a MESSAGES command.

    `missing_topic_ids` are the topics that had been deleted before: their messages were not
    stored. Empty in the normal case.
    """

    missing_topic_ids: tuple[int, ...] = ()


@dataclass(slots=True)
class AppliedEffects:
    """What one call of `apply` has changed, for those who wait for it.

    Attributes:
        queues: (topic id, queue id) of every queue that got messages, and its new maximum offset.
        topics: Names of topics created, changed or deleted.
        groups: Names of groups created, changed or deleted.
        offsets_stored: How many consumer offsets were stored.
        runs: Of the newest entry: topic id, queue id and new maximum of each queue it wrote.
        checkpoint: Log index and digest of the newest checkpoint passed, if one was.
        timers_due_ms: When the first of the timers that were added is due, None if none was.
        resets: (topic id, queue id) of queues in which a group was moved.
        settings: Whether settings of the group were changed.
    """

    queues: dict[tuple[int, int], int] = field(default_factory=dict)
    topics: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    offsets_stored: int = 0
    checkpoint: tuple[int, bytes] | None = None
    runs: list[tuple[int, int, int | None]] = field(default_factory=list)
    timers_due_ms: int | None = None
    resets: list[tuple[int, int]] = field(default_factory=list)
    settings: bool = False


DIGEST_ENTRIES: Final = 1000
_ALL_STORED: Final = MessagesApplied()


class StateDivergedError(StoreError):
    """This replica's state is not the leader's, though the log is the same. It must be rebuilt."""

    definite = True


class BrokerStateMachine:
    """Applies entries to a `StateStore`. Satisfies `dledger.raft.protocols.StateMachine`."""

    def __init__(
        self,
        store: StateStore,
        on_applied: Callable[[AppliedEffects], None] | None = None,
        *,
        digest_entries: int = DIGEST_ENTRIES,
    ) -> None:
        """Makes a state machine over a store.

        Args:
            store: Where the effects go.
            digest_entries: A checkpoint of the digest is kept at every index that this divides.
            on_applied: Called after every transaction that changed something, before `apply`
                returns its results.
        """
        self._store = store
        self._on_applied = on_applied
        self._digest_entries = digest_entries

    @property
    def applied_index(self) -> int:
        """Index of the last entry whose effects are stored."""
        return self._store.applied_index

    def apply(self, entries: Sequence[Entry]) -> list[object]:
        """Applies consecutive entries in one transaction.

        Entries up to the applied index are skipped with the result None: their effects are
        stored already.

        Returns:
            One result per entry; see the records in `commands`. None for Raft's own entries.

        Raises:
            DiskFullError: Nothing was applied; the same call may be made again.
            InvariantError: A command is malformed or entries are not consecutive.
            StateDivergedError: The leader's state is another one.

        Durability: effects and applied index are written, together.
        """
        effects = AppliedEffects()
        results: list[object] = []
        index = self._store.applied_index
        term = self._store.applied_term
        held = index
        with self._store.write() as batch:
            for entry in entries:
                if entry.index <= held:
                    results.append(None)
                    continue
                # The first entry of every log is Raft's own and is never handed to be applied.
                follows = entry.index == index + 1 or (index == 0 and entry.index == 2)
                invariant(
                    follows and entry.term >= term,
                    "entries to apply are not consecutive",
                    index=entry.index,
                    term=entry.term,
                    applied_index=index,
                    applied_term=term,
                )
                index, term = entry.index, entry.term
                effects.runs = []
                result = _apply_body(batch, index, entry.body, effects)
                results.append(result)
                self._digest(batch, entry, result, effects)
            batch.set_applied(index, term)
        if self._on_applied is not None and (
            effects.queues
            or effects.topics
            or effects.groups
            or effects.offsets_stored
            or effects.checkpoint
            or effects.resets
            or effects.settings
        ):
            self._on_applied(effects)
        return results

    def _digest(
        self, batch: WriteBatch, entry: Entry, result: object, effects: AppliedEffects
    ) -> None:
        """Takes an entry and what it did into the digest.

        What it did (offsets of queues, ids of topics, refusals) follows from the state before, so
        a state that differs shows itself soon, at the cost of hashing some hundred bytes an entry.
        """
        if entry.body[0] >= RAFT_TYPES_END:
            done = repr((entry.index, entry.term, _summary(result), effects.runs)).encode()
            hasher = hashlib.blake2b(batch.digest, digest_size=keys.DIGEST_BYTES)
            hasher.update(done)
            batch.set_digest(hasher.digest())
        if entry.index % self._digest_entries == 0:
            batch.checkpoint(entry.index)
            effects.checkpoint = (entry.index, batch.digest)


def _summary(result: object) -> object:
    """Returns what of a result goes into the digest: nothing that a newer version may extend."""
    if isinstance(result, TopicConfig):
        return result.topic_id
    if isinstance(result, MessagesApplied):
        return result.missing_topic_ids
    if isinstance(result, Popped) or type(result) is tuple:
        return tuple(result)
    return result if isinstance(result, (int, bool)) else None


def _check_digest(batch: WriteBatch, index: int, digest: bytes) -> None:
    own = batch.digest_at(index)
    if own is not None and own != digest:
        raise StateDivergedError(
            f"the state after entry {index} is not the leader's ({own.hex()}, leader "
            f"{digest.hex()}): this replica must be rebuilt from its peers"
        )


def _apply_body(batch: WriteBatch, index: int, body: Buffer, effects: AppliedEffects) -> object:
    invariant(len(body), "empty log entry")
    type_ = body[0]
    if type_ == CommandType.MESSAGES:
        return _apply_messages(batch, index, body, effects)
    if type_ < RAFT_TYPES_END:
        return None
    if timers_command.is_timer_command(type_):
        return timers_command.apply(batch, index, body, effects, _apply_messages)
    if type_ == MESSAGES_WITH_RIDERS:
        riders, messages = decode_riders(body)
        applied = _apply_messages(batch, index, messages, effects)
        for rider in riders:
            if rider.topic_id not in applied.missing_topic_ids:
                apply_rider(batch, rider)
        return applied
    if type_ in FEATURE_TYPES:
        effects.settings |= type_ == FeatureType.PUT_SETTINGS
        return apply_feature(batch, body, effects.resets)
    return _apply_control(batch, decode_control(body), effects)


def _apply_messages(
    batch: WriteBatch, index: int, body: Buffer, effects: AppliedEffects
) -> MessagesApplied:
    command = decode_messages(body)
    missing: list[int] = []
    parking = timers_command.parking_topic_ids(batch)
    append, note, queues = batch.append_units, effects.runs.append, effects.queues
    for run in command.runs:
        topic_id, queue_id, first_queue_offset, units = run
        offset_max = append(topic_id, queue_id, first_queue_offset, units)
        note((topic_id, queue_id, offset_max))
        if offset_max is None:
            # Proposed before its topic was deleted, applied after.
            missing.append(topic_id)
        else:
            queues[topic_id, queue_id] = offset_max
            if topic_id in parking:
                timers_command.apply_parked(batch, run, command, effects)
    for group in command.key_groups:
        records = _without_topics(group, set(missing)) if missing else group.records
        batch.put_keys(group.key_bytes, records)
    if command.limits is not None:
        # The leader has looked for repetitions before it gave the entry its place; here its
        # decision is only noted, so that replicas cannot come to different ones.
        batch.record_sends(
            command.sends,
            limits=command.limits,
            index=index,
            timestamp_ms=command.store_timestamp_ms,
            without=missing,
        )
    return MessagesApplied(tuple(sorted(set(missing)))) if missing else _ALL_STORED


def _without_topics(group: KeyGroup, topic_ids: set[int]) -> bytes:
    """Returns the records of other topics; a deleted topic's could not be removed any more."""
    records = Struct(f"{group.key_bytes + keys.KEY_VALUE_BYTES}s").iter_unpack(group.records)
    return b"".join(
        record for (record,) in records if keys.TOPIC_ID.unpack_from(record)[0] not in topic_ids
    )


def _apply_control(batch: WriteBatch, command: Control, effects: AppliedEffects) -> object:
    match command:
        case PutTopic(config, only_create):
            topic = batch.topic(config.name)
            if topic is None or not only_create:
                effects.topics.append(config.name)
                topic = batch.put_topic(config)
            return topic
        case DeleteTopic(name):
            topic = batch.topic(name)
            if topic is None:
                return False
            effects.topics.append(name)
            for queue in [queue for queue in effects.queues if queue[0] == topic.topic_id]:
                del effects.queues[queue]
            topic_deleted(batch, topic.topic_id)
            return batch.delete_topic(name)
        case PutGroup(config, only_create):
            group = batch.group(config.name)
            if group is None or not only_create:
                effects.groups.append(config.name)
                group = batch.put_group(config)
            return group
        case DeleteGroup(name, delete_offsets):
            if delete_offsets:
                group_deleted(batch, name)
            existed = batch.delete_group(name, delete_offsets=delete_offsets)
            if existed:
                effects.groups.append(name)
            return existed
        case CommitOffsets():
            stored = batch.put_consumer_offsets(offsets_of(command))
            effects.offsets_stored += stored
            return stored
        case TrimQueues(minimums):
            for topic_id, queue_id, minimum in minimums:
                batch.trim_queue(topic_id, queue_id, minimum)
            return None
        case CheckDigest(index, digest):
            _check_digest(batch, index, digest)
            return None
        case TrimLog(physical_offset):
            batch.set_retained(physical_offset)
            return None
        case _:
            assert_never(command)
