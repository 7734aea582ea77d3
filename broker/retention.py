"""Dropping old messages: which, by the leader's choice; then each replica's files.

The leader looks at its own sealed segments. When the oldest are old enough (or too many, or the
disk is nearly full), it first has the minimum offsets of all queues raised that have messages in
them, by entries that every replica applies, and then has the log before a physical offset declared
dispensable. After that each replica removes the segments of its own that lie wholly before it, as
soon as nothing needs them any more.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from struct import Struct
from typing import Final, NamedTuple

from broker import commands
from broker.commands import CommandType
from broker.context import BrokerContext
from broker.maintenance import Maintenance
from broker.riders import MESSAGES_WITH_RIDERS, decode_riders
from broker.snapshotting import Snapshotter
from broker.stores import Stores
from dledger.errors import DiskFailureError, DiskFullError, DLedgerError
from store.files import FileSystem
from store.segment import SegmentFacts

logger = logging.getLogger(__name__)

MINIMUMS_PER_COMMAND: Final = 1000
QUEUES_PER_TURN: Final = 128  # looked at in one turn of the loop: about 2 ms
ENTRIES_LOOKED_AT: Final = 32
_STORE_TIMESTAMP: Final = Struct(">Q")
_STORE_TIMESTAMP_AT: Final = 16  # in a MESSAGES command


class DatedSegment(NamedTuple):
    """A sealed segment and when its newest message was stored, None if it holds none."""

    facts: SegmentFacts
    newest_ms: int | None


def choose_boundary(
    segments: Sequence[DatedSegment],
    *,
    now_ms: int,
    retention_ms: int,
    bytes_max: int,
    bytes_short: int,
    log_bytes: int,
    index_max: int,
) -> int | None:
    """Returns the physical offset before which the log may go, None if all of it stays. Pure.

    Args:
        segments: The sealed ones, the oldest first. One without messages counts as old as the
            next that has some.
        now_ms: Wall clock.
        retention_ms: Older messages go.
        bytes_max: What the log may take; 0 for no limit.
        bytes_short: What is lacking in free space.
        log_bytes: What the log takes.
        index_max: The entry with this index and all newer ones stay.
    """
    ages: list[int | None] = []
    newer: int | None = None
    for segment in reversed(segments):
        newer = segment.newest_ms if segment.newest_ms is not None else newer
        ages.append(newer)
    boundary: int | None = None
    dropped = 0
    for segment, newest_ms in zip(segments, reversed(ages), strict=True):
        is_old = newest_ms is not None and now_ms - newest_ms > retention_ms
        is_too_much = bool(bytes_max) and log_bytes - dropped > bytes_max
        if segment.facts.last_index >= index_max:
            break
        if not (is_old or is_too_much or dropped < bytes_short):
            break
        boundary = segment.facts.end
        dropped += segment.facts.end - segment.facts.base
    return boundary


@dataclass
class _Hold:
    """Since when a follower keeps segments from going, what it took last, and what ends that."""

    begun: float
    moved: float
    goal: int
    match_index: int = 0
    snapshot_index: int = 0
    snapshot_bytes: int = 0
    is_over: bool = False

    def take_note(self, now: float, theirs: Mapping[str, int]) -> None:
        """Looks whether the follower took something since the last time.

        Pieces that it got before, of the same snapshot, are nothing new. A newer snapshot counts
        from its own beginning: it may never get as far as an older one did.
        """
        match = theirs["match_index"]
        snapshot = theirs.get("snapshot_index", 0)
        received = theirs.get("snapshot_bytes", 0)
        if snapshot and snapshot != self.snapshot_index:
            self.snapshot_index, self.snapshot_bytes = snapshot, 0
        if match > self.match_index or received > self.snapshot_bytes:
            self.moved = now
            self.match_index = max(self.match_index, match)
            self.snapshot_bytes = max(self.snapshot_bytes, received)


class Patience:
    """How long old segments are kept for a follower that still needs them. Pure.

    A follower that takes something, however slowly, is waited for: were the log's front to move on
    while a snapshot is under way, or the log behind it, all of it would be in vain, and the next
    snapshot would meet the same fate. One that takes nothing for so long (a full or dead disk, a
    stopped process, no connection) is not waited for. When this replica's own disk is short of
    space, its pace counts as well: it has that long for a segment, or has to begin anew.
    """

    def __init__(self, wait_s: float) -> None:
        self._wait_s = wait_s
        self._holds: dict[str, _Hold] = {}

    def needed_index(
        self,
        now: float,
        oldest: int | None,
        progress: Mapping[str, Mapping[str, int]],
        *,
        is_short: bool = False,
    ) -> int | None:
        """Returns the first index that followers may keep, None if there is none.

        Args:
            now: Monotonic time.
            oldest: Last index of the oldest segment, if that is to go.
            progress: `RaftNode.peer_progress`. Followers away do not count, unless they were
                waited for when the connection broke: one that is away for longer than messages
                are kept gets a snapshot when it is back.
            is_short: Whether this replica's disk lacks space.
        """
        needed = [
            theirs["match_index"]
            for peer, theirs in progress.items()
            if (theirs["connected"] or peer in self._holds)
            and not self._is_over(peer, now, oldest, theirs, is_short=is_short)
        ]
        for peer in self._holds.keys() - progress.keys():
            del self._holds[peer]
        return min(needed, default=None)

    def _is_over(
        self,
        peer: str,
        now: float,
        oldest: int | None,
        theirs: Mapping[str, int],
        *,
        is_short: bool,
    ) -> bool:
        """Whether a follower has been waited for long enough."""
        match = theirs["match_index"]
        hold = self._holds.get(peer)
        if hold is not None and match > hold.goal:
            hold = None
        if hold is None:
            self._holds.pop(peer, None)
            if oldest is None or match > oldest:
                return not theirs["connected"]
            hold = self._holds[peer] = _Hold(now, now, oldest, match)
        hold.take_note(now, theirs)
        waited_s = now - (hold.begun if is_short else hold.moved)
        is_over = waited_s >= self._wait_s
        if is_over and not hold.is_over:
            logger.warning(
                "old segments no longer wait for a replica that does not take them: "
                "replica=%s match_index=%d waited_s=%.1f disk_short=%s",
                peer,
                match,
                waited_s,
                is_short,
            )
        hold.is_over = is_over
        return is_over


class Retention:
    """Drops old messages of one replica's group (as leader) and old files of this replica."""

    def __init__(
        self,
        context: BrokerContext,
        stores: Stores,
        snapshotter: Snapshotter,
        maintenance: Maintenance,
        fs: FileSystem,
    ) -> None:
        self._context = context
        self._stores = stores
        self._snapshotter = snapshotter
        self._maintenance = maintenance
        self._fs = fs
        self._patience = Patience(context.config.timing.retention_wait_s)
        self._newest_ms: dict[int, int | None] = {}  # by base offset; sealed segments never change

    async def run(self, interval_s: float) -> None:
        """Looks for old messages now and then. For ever."""
        while True:
            await asyncio.sleep(interval_s)
            try:
                await self.look()
            except DiskFullError as error:
                logger.warning("nothing dropped: %s", error)

    async def look(self) -> None:
        """Drops what may be dropped now.

        Raises:
            DiskFullError: No room for a snapshot that must come first.
            DiskFailureError: The disk failed.
        """
        if self._context.raft.is_serving:
            try:
                await self._trim_state()
            except DiskFailureError:
                raise
            except DLedgerError as error:
                logger.info("retention goes on later: %s", error)
        await self._shorten_log()

    # --- the leader's part ------------------------------------------------------------------

    async def _trim_state(self) -> None:
        section = self._context.config.store
        stores = self._stores
        choose = partial(
            choose_boundary,
            [DatedSegment(facts, self._dated(facts)) for facts in stores.log.segments()],
            now_ms=self._context.clock.wall_ms(),
            retention_ms=int(section.retention_hours * 3_600_000),
            bytes_max=section.retention_bytes,
            bytes_short=self._bytes_short(),
            log_bytes=stores.log.size_bytes,
        )
        applied = stores.store.applied_index
        wanted = choose(index_max=applied)
        if wanted is None or wanted <= stores.store.retained_offset:
            return
        boundary = choose(index_max=min(applied, self._needed_index()))
        if boundary is None or boundary <= stores.store.retained_offset:
            return
        count = await self._trim_queues(boundary)
        await self._context.raft.submit(commands.encode_trim_log(boundary))
        logger.info("old messages dropped: offset_min=%d queues=%d", boundary, count)

    async def _trim_queues(self, boundary: int) -> int:
        """Raises the minimum of every queue that has messages before the boundary."""
        store, raft = self._stores.store, self._context.raft
        count = 0
        minimums: list[tuple[int, int, int]] = []
        for number, (topic_id, queue_id) in enumerate(list(store.queues)):
            low, _ = store.queue_bounds(topic_id, queue_id)
            minimum = self._first_kept(topic_id, queue_id, boundary)
            if minimum > low:
                minimums.append((topic_id, queue_id, minimum))
                count += 1
            if len(minimums) == MINIMUMS_PER_COMMAND:
                await raft.submit(commands.encode_trim_queues(minimums))
                minimums = []
            elif number % QUEUES_PER_TURN == QUEUES_PER_TURN - 1:
                await asyncio.sleep(0)
        if minimums:
            await raft.submit(commands.encode_trim_queues(minimums))
        return count

    def _first_kept(self, topic_id: int, queue_id: int, boundary: int) -> int:
        """Returns the first queue offset whose message lies at or behind the boundary.

        Physical offsets rise within a queue, and messages added later lie further behind.
        """
        store = self._stores.store
        low, high = store.queue_bounds(topic_id, queue_id)
        first = True
        while low < high:
            # Most queues have nothing to drop: their first message tells.
            middle = low if first else (low + high) // 2
            first = False
            unit = store.read_units(topic_id, queue_id, middle, 1)[0]
            if unit.physical_offset < boundary:
                low = middle + 1
            else:
                high = middle
        return low

    def _dated(self, facts: SegmentFacts) -> int | None:
        """Returns when the newest message of a sealed segment was stored."""
        if facts.base not in self._newest_ms:
            self._newest_ms[facts.base] = self._look_up(facts)
        return self._newest_ms[facts.base]

    def _look_up(self, facts: SegmentFacts) -> int | None:
        first = max(facts.first_index, facts.last_index - ENTRIES_LOOKED_AT + 1)
        for index in range(facts.last_index, first - 1, -1):
            for entry in self._stores.log.read_entries(index, 1, 1):
                body = entry.body
                if len(body) and body[0] == MESSAGES_WITH_RIDERS:
                    _, body = decode_riders(body)
                if len(body) and body[0] == CommandType.MESSAGES:
                    return int(_STORE_TIMESTAMP.unpack_from(body, _STORE_TIMESTAMP_AT)[0])
        return None

    def _needed_index(self) -> int:
        """Returns the first index that a follower still needs and may keep."""
        oldest = next((facts.last_index for facts in self._stores.log.segments()), None)
        progress = self._context.raft.peer_progress()
        needed = self._patience.needed_index(
            self._context.clock.monotonic(), oldest, progress, is_short=self._is_short()
        )
        return self._stores.store.applied_index if needed is None else needed

    def _bytes_short(self) -> int:
        """Returns what this replica's disk lacks in free space."""
        config = self._context.config
        free_bytes = self._fs.free_bytes(config.data_directory)
        return max(0, config.store.retention_free_bytes - free_bytes)

    def _is_short(self) -> bool:
        """Whether followers must not keep more of the log here; before a leader hands over."""
        config = self._context.config
        least = max(config.store.retention_free_bytes, 4 * config.store.disk_free_min_bytes)
        return self._fs.free_bytes(config.data_directory) < least

    # --- every replica's part ---------------------------------------------------------------

    async def _shorten_log(self) -> None:
        stores = self._stores
        limit = stores.store.retained_offset
        doomed = [facts for facts in stores.log.segments() if facts.end <= limit]
        if not doomed:
            return
        newest = stores.snapshots.newest
        if newest is None or newest.applied_index <= doomed[-1].last_index:
            newest = await self._snapshotter.take()
        index_max = min(newest.applied_index, stores.store.applied_index, self._needed_index())
        removal = stores.log.release_front(limit, index_max)
        if removal is None:
            return
        for facts in removal.segments:
            self._newest_ms.pop(facts.base, None)
        try:
            await self._maintenance.run(removal.run)
        except OSError as error:
            raise DiskFailureError(f"removing old segments: {error}") from error
