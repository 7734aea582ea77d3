"""PULL_MESSAGE (11) and LITE_PULL_MESSAGE (361): reading, filtering and long polling.

Any replica answers from what it has applied, which is committed. Only the serving leader may say
that an offset lies beyond the end (21), since a client then moves its own offset: and only after a
majority has confirmed that it still leads. A follower that is asked for more than it has holds the
pull, as it would for a message that has not been sent yet.

Source: RocketMQ `PullMessageProcessor`, `PullRequestHoldService`. We differ: a pull that is woken
by messages which its filter does not let pass goes on waiting, from behind them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from broker.catalog import Catalog
from broker.context import FATAL_ERRORS, BrokerContext
from broker.filters import TagCodes, is_sql, parse_tag_expression, subscription_codes
from broker.long_polls import ParkedPull
from broker.offset_resets import PendingResets
from broker.pull_scan import Selection, Test
from broker.reading import check_group, count_fetched, readable_topic
from broker.sql_filter import SqlFilter, compile_sql
from dledger.codes import PullFlag, ResponseCode
from dledger.errors import (
    DLedgerError,
    FlowControlError,
    NotLeaderError,
    PermissionDeniedError,
    RequestError,
    TopicNotFoundError,
)
from dledger.message import stored_properties
from dledger.remoting.bodies import SubscriptionData
from dledger.remoting.commands import Command
from dledger.remoting.headers import PullMessageHeader
from dledger.remoting.server import Connection

logger = logging.getLogger(__name__)

BYTES_DEFAULT = 256 * 1024
UNITS_PER_READ = 1024
# With a filter that lets little pass, one pull looks at no more units than this.
UNITS_SCANNED_MAX = 8192
# A condition in SQL looks at the messages themselves.
MESSAGES_TESTED_MAX = 1024

_ALL_OFFSETS = 1 << 62
# As a client announces itself whose consumers look at the tags of what they get.
_FILTERS_TAGS_ITSELF = "JAVA"


class SubscriptionNotFoundError(RequestError):
    """The group has not said, by a heartbeat, what it wants of the topic."""

    response_code = ResponseCode.SUBSCRIPTION_NOT_EXIST


class SubscriptionNotLatestError(RequestError):
    """The broker knows an older subscription than the one the client pulls by."""

    response_code = ResponseCode.SUBSCRIPTION_NOT_LATEST


class Pull:
    """One checked pull request."""

    __slots__ = (
        "bytes_max",
        "codes",
        "command",
        "connection",
        "count_max",
        "deadline_ms",
        "group",
        "offset",
        "queue_id",
        "sql",
        "topic",
        "topic_id",
    )

    def __init__(self, connection: Connection, command: Command) -> None:
        self.connection = connection
        self.command = command
        self.group = ""
        self.topic = ""
        self.topic_id = 0
        self.queue_id = 0
        self.offset = 0
        self.count_max = 1
        self.bytes_max = BYTES_DEFAULT
        self.codes: TagCodes = None
        self.sql: SqlFilter | None = None
        self.deadline_ms: int | None = None  # None: answer at once


class Outcome(NamedTuple):
    """What a pull found. `must_confirm`: a leader says 21 only after a majority agreed."""

    code: ResponseCode
    status: str
    next_offset: int
    offset_min: int
    offset_max: int
    slices: Sequence[tuple[int, int]] = ()
    message_count: int = 0
    must_confirm: bool = False


class PullProcessor:
    """Answers pulls now or when there is something to answer."""

    def __init__(
        self,
        context: BrokerContext,
        catalog: Catalog,
        commit_offset: Callable[[str, str, int, int], None],
        resets: PendingResets,
    ) -> None:
        """Prepares the processor.

        Args:
            context: The broker's parts.
            catalog: Topics and groups.
            commit_offset: Takes group, topic, queue id and offset from a pull that carries them.
            resets: Which groups have still to move.
        """
        self._context = context
        self._catalog = catalog
        self._commit_offset = commit_offset
        self._resets = resets
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due_ms = 0
        self._grown: dict[tuple[int, int], int] = {}
        # Groups that keep up wait at the same place and get the same. What is held between the same
        # bounds of a queue never changes.
        self._selected: tuple[tuple[object, ...], Outcome] | None = None
        # The state may be far behind the log after a restart: all of it after a power loss.
        behind = context.store.applied_index < context.log.last_index
        self._replay_to = context.log.last_index if behind else 0

    def pull(self, connection: Connection, command: Command) -> None:
        """Answers or parks a pull.

        Raises:
            NotLeaderError: This replica still replays its log, or lacks the part that a snapshot
                it was given knows of; the leader shall answer.
            DLedgerError: Refused.
        """
        header = command.header(PullMessageHeader)
        if (self._replay_to and self._is_replaying()) or self._lacks_log():
            raise NotLeaderError(self._context.raft.leader_id, self._context.raft.term)
        pull = self._admit(connection, command, header)
        self._note_reset(pull)
        outcome = self._evaluate(pull, pull.offset)
        if outcome.must_confirm:
            name = f"confirm-{connection.id}-{command.opaque}"
            self._context.tasks.spawn(self._confirm(pull), name)
        elif outcome.code == ResponseCode.PULL_NOT_FOUND and pull.deadline_ms is not None:
            self._park(pull, pull.offset)
        else:
            self._answer(pull, outcome)

    def _note_reset(self, pull: Pull) -> None:
        """Notes a member that comes to where its group was moved.

        Raises:
            NotLeaderError: The leader must hear of it.
        """
        key = (pull.group, pull.topic_id, pull.queue_id)
        if self._resets.target(key) != pull.offset:
            return
        if not self._context.raft.is_serving:
            raise NotLeaderError(self._context.raft.leader_id, self._context.raft.term)
        self._resets.has_come(key, pull.offset)

    def queues_reset(self, queues: Sequence[tuple[int, int]]) -> None:
        """Looks again at what waits in queues, (topic id, queue id), in which a group was moved."""
        self._resets.changed()
        if queues and len(self._context.long_polls):
            asyncio.get_running_loop().call_soon(self._wake_queues, list(queues))

    def _wake_queues(self, queues: list[tuple[int, int]]) -> None:
        for topic_id, queue_id in queues:
            for parked in self._context.long_polls.arrived(topic_id, queue_id, _ALL_OFFSETS):
                self._guarded(self._rerun, parked)

    def _is_replaying(self) -> bool:
        """Whether the state still lacks entries that the log held at the start.

        Until then it would show queues shorter than this replica itself has shown them before.
        """
        context = self._context
        # The end of the log may have been cut since: it was never committed then.
        target = min(self._replay_to, context.log.last_index)
        if context.raft.is_serving or context.store.applied_index >= target:
            self._replay_to = 0
        return self._replay_to > 0

    def _lacks_log(self) -> bool:
        """Whether a snapshot was installed here and the log has not reached it yet."""
        return self._context.log.last_index < self._context.store.applied_index

    # --- events -----------------------------------------------------------------------------

    def queues_grew(self, queues: Mapping[tuple[int, int], int]) -> None:
        """Notes new maximum offsets by (topic id, queue id); waiting pulls are looked at soon.

        Not at once: the caller is in the middle of applying, and the answers of the next turn
        share one write per connection anyway.
        """
        if not len(self._context.long_polls):
            return
        if not self._grown:
            asyncio.get_running_loop().call_soon(self._wake)
        self._grown.update(queues)

    def topics_changed(self) -> None:
        """Answers the pulls that wait in topics that are gone."""
        long_polls = self._context.long_polls
        for topic_id in long_polls.topic_ids():
            if self._context.store.topic_by_id(topic_id) is not None:
                continue
            for parked in long_polls.drop_topic(topic_id):
                pull: Pull = parked.request
                error = TopicNotFoundError(f"topic {pull.topic} was deleted")
                pull.connection.reply_error(pull.command, error)

    def connection_lost(self, connection: Connection) -> None:
        """Forgets the pulls of a connection."""
        self._context.long_polls.drop_owner(connection.id)

    def close(self) -> None:
        """Answers everything that waits with what is known: nothing new."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for parked in self._context.long_polls.drop_all():
            self._guarded(self._finish, parked)

    def _wake(self) -> None:
        grown, self._grown = self._grown, {}
        long_polls = self._context.long_polls
        for (topic_id, queue_id), offset_max in grown.items():
            for parked in long_polls.arrived(topic_id, queue_id, offset_max):
                self._guarded(self._rerun, parked)

    def _guarded(self, action: Callable[[ParkedPull], None], parked: ParkedPull) -> None:
        """Runs an action outside of any request: its failure must not cost others their answers."""
        try:
            action(parked)
        except Exception as error:
            pull: Pull = parked.request
            pull.connection.reply_error(pull.command, error)
            if isinstance(error, FATAL_ERRORS):
                self._context.on_fatal(error)
            elif not isinstance(error, DLedgerError):
                logger.error("waking a pull failed", exc_info=error)

    def _rerun(self, parked: ParkedPull) -> None:
        pull: Pull = parked.request
        outcome = self._evaluate(pull, parked.offset)
        if outcome.code in (ResponseCode.SUCCESS, ResponseCode.PULL_OFFSET_MOVED):
            self._answer(pull, outcome)
        else:
            self._park(pull, max(parked.offset, outcome.next_offset))

    def _expire(self) -> None:
        self._timer = None
        for parked in self._context.long_polls.expire(self._now_ms()):
            self._guarded(self._finish, parked)
        self._arm()

    def _finish(self, parked: ParkedPull) -> None:
        """Answers a pull whose time is up; filtered messages behind it move the client on."""
        pull: Pull = parked.request
        outcome = self._evaluate(pull, parked.offset)
        if outcome.code not in (ResponseCode.SUCCESS, ResponseCode.PULL_RETRY_IMMEDIATELY):
            code = ResponseCode.PULL_NOT_FOUND
            if parked.offset > pull.offset:
                code = ResponseCode.PULL_RETRY_IMMEDIATELY
            offset_max = max(outcome.offset_max, parked.offset)
            outcome = outcome._replace(code=code, next_offset=parked.offset, offset_max=offset_max)
        self._answer(pull, outcome)

    # --- parking ----------------------------------------------------------------------------

    def _park(self, pull: Pull, scanned_to: int) -> None:
        deadline_ms = pull.deadline_ms
        if deadline_ms is None or pull.connection.is_closing:
            return
        parked = ParkedPull(
            owner=pull.connection.id,
            topic_id=pull.topic_id,
            queue_id=pull.queue_id,
            offset=scanned_to,
            deadline_ms=deadline_ms,
            request=pull,
        )
        try:
            self._context.long_polls.park(parked)
        except FlowControlError as error:
            pull.connection.reply_error(pull.command, error)
            return
        self._arm()

    def _arm(self) -> None:
        due_ms = self._context.long_polls.next_deadline_ms()
        if due_ms is None:
            return
        if self._timer is not None:
            if self._timer_due_ms <= due_ms:
                return
            self._timer.cancel()
        delay_s = max(0, due_ms - self._now_ms()) / 1000
        self._timer_due_ms = due_ms
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._expire)

    def _now_ms(self) -> int:
        return int(self._context.clock.monotonic() * 1000)

    # --- reading ----------------------------------------------------------------------------

    def _evaluate(self, pull: Pull, start: int) -> Outcome:
        """Looks for messages from queue offset `start`."""
        store = self._context.store
        offset_min, offset_max = bounds = store.queue_bounds(pull.topic_id, pull.queue_id)
        if self._lacks_log() and offset_min <= start < offset_max:
            # A pull that waited while the snapshot came. Not the end of the queue: that would say
            # that there is nothing where there is something.
            status = "OFFSET_OVERFLOW_ONE"
            return Outcome(ResponseCode.PULL_NOT_FOUND, status, start, offset_min, start)
        target = self._resets.target((pull.group, pull.topic_id, pull.queue_id))
        if target is not None and target != start:
            moved = ResponseCode.PULL_OFFSET_MOVED
            return Outcome(moved, "OFFSET_RESET", target, offset_min, offset_max)
        if start >= offset_max or start < offset_min:
            return self._outside(start, offset_min, offset_max)
        key = (pull.topic_id, pull.queue_id, start, bounds, pull.count_max, pull.bytes_max)
        plain = pull.codes is None and pull.sql is None
        if plain and self._selected is not None and self._selected[0] == key:
            return self._selected[1]
        outcome = self._select(pull, start, bounds)
        if plain:
            self._selected = key, outcome
        return outcome

    def _select(self, pull: Pull, start: int, bounds: tuple[int, int]) -> Outcome:
        """Chooses messages from a queue offset that lies within the bounds."""
        store = self._context.store
        offset_min, offset_max = bounds
        selection = Selection(start, count_max=pull.count_max, size_bytes_max=pull.bytes_max)
        stop = offset_max
        step = pull.count_max
        test = None if pull.sql is None else self._tester(pull.sql)
        if pull.codes is not None or test is not None:
            stop = min(stop, start + (MESSAGES_TESTED_MAX if test else UNITS_SCANNED_MAX))
            step = UNITS_PER_READ
        while selection.next_offset < stop and not selection.is_full:
            if selection.count >= pull.count_max:
                break
            wanted = min(step, stop - selection.next_offset, UNITS_PER_READ)
            units = store.read_unit_bytes(
                pull.topic_id, pull.queue_id, selection.next_offset, wanted
            )
            selection.add(units, pull.codes, test)
        if selection.count:
            code, status = ResponseCode.SUCCESS, "FOUND"
        else:
            code, status = ResponseCode.PULL_RETRY_IMMEDIATELY, "NO_MATCHED_MESSAGE"
        return Outcome(
            code,
            status,
            selection.next_offset,
            offset_min,
            offset_max,
            selection.slices,
            selection.count,
        )

    def _tester(self, sql: SqlFilter) -> Test:
        read = self._context.log.read

        def test(physical_offset: int, size_bytes: int) -> bool:
            return sql.matches_raw(stored_properties(read(physical_offset, size_bytes)))

        return test

    def _outside(self, start: int, offset_min: int, offset_max: int) -> Outcome:
        not_found = ResponseCode.PULL_NOT_FOUND
        moved = ResponseCode.PULL_OFFSET_MOVED
        if start == offset_max:
            status = "OFFSET_OVERFLOW_ONE" if offset_max else "NO_MESSAGE_IN_QUEUE"
            return Outcome(not_found, status, start, offset_min, offset_max)
        if start < offset_min:
            return Outcome(moved, "OFFSET_TOO_SMALL", offset_min, offset_min, offset_max)
        if not self._context.raft.is_serving:
            # What the client has seen exists; this replica only has not applied it yet.
            return Outcome(not_found, "OFFSET_OVERFLOW_ONE", start, offset_min, start)
        status = "OFFSET_OVERFLOW_BADLY" if offset_max else "NO_MESSAGE_IN_QUEUE"
        return Outcome(moved, status, offset_max, offset_min, offset_max, must_confirm=True)

    async def _confirm(self, pull: Pull) -> None:
        """Answers a pull from beyond the end, once this replica is known to lead still."""
        try:
            await self._context.raft.read_barrier()
        except NotLeaderError:
            pass  # The second look then is that of a follower.
        except DLedgerError as error:
            pull.connection.reply_error(pull.command, error)
            return
        outcome = self._evaluate(pull, pull.offset)
        if outcome.code == ResponseCode.PULL_NOT_FOUND and pull.deadline_ms is not None:
            self._park(pull, pull.offset)
        else:
            self._answer(pull, outcome)

    def _answer(self, pull: Pull, outcome: Outcome) -> None:
        body: list[memoryview] = []
        if outcome.code == ResponseCode.SUCCESS:
            read = self._context.log.read
            body = [read(at, size) for at, size in outcome.slices]
            size_bytes = sum(size for _, size in outcome.slices)
            count = outcome.message_count
            count_fetched(self._context, pull.group, pull.topic, count, size_bytes)
            self._context.statistics.read_to(
                pull.group, pull.topic_id, pull.queue_id, outcome.next_offset
            )
        else:
            self._context.statistics.found_nothing()
        ext = {
            "suggestWhichBrokerId": "0",
            "nextBeginOffset": str(outcome.next_offset),
            "minOffset": str(outcome.offset_min),
            "maxOffset": str(outcome.offset_max),
        }
        pull.connection.reply(pull.command, int(outcome.code), ext, outcome.status, body)

    # --- admission --------------------------------------------------------------------------

    def _admit(self, connection: Connection, command: Command, header: PullMessageHeader) -> Pull:
        config = self._context.config
        topic = readable_topic(self._context, header.topic, header.queue_id)
        check_group(self._context, self._catalog, header.consumer_group)
        pull = Pull(connection, command)
        pull.group = header.consumer_group
        pull.topic, pull.topic_id = topic.name, topic.topic_id
        pull.queue_id, pull.offset = header.queue_id, header.queue_offset
        limits = config.limits
        pull.count_max = min(max(1, header.message_count_max), limits.pull_count_max)
        wanted = header.bytes_max if header.bytes_max and header.bytes_max > 0 else BYTES_DEFAULT
        pull.bytes_max = min(wanted, limits.pull_bytes_max)
        pull.codes, pull.sql = self._filter(header, command.language)
        if header.sys_flag & PullFlag.SUSPEND and header.suspend_timeout_ms > 0:
            longest_ms = int(config.timing.suspend_max_s * 1000)
            pull.deadline_ms = self._now_ms() + min(header.suspend_timeout_ms, longest_ms)
        if header.sys_flag & PullFlag.COMMIT_OFFSET and header.commit_offset >= 0:
            self._commit_offset(
                header.consumer_group, topic.name, header.queue_id, header.commit_offset
            )
        return pull

    def _filter(
        self, header: PullMessageHeader, language: str
    ) -> tuple[TagCodes, SqlFilter | None]:
        if header.sys_flag & PullFlag.SUBSCRIPTION:
            if is_sql(header.expression_type):
                return None, compile_sql(header.subscription)
            return parse_tag_expression(header.subscription), None
        group = self._context.clients.consumer_group(header.consumer_group)
        if group is None:
            raise SubscriptionNotFoundError("the consumer's group info not exist")
        config = self._context.store.group(header.consumer_group)
        if (
            config is not None
            and not config.consume_broadcast_enable
            and group.message_model == "BROADCASTING"
        ):
            raise PermissionDeniedError(
                f"the consumer group[{header.consumer_group}] can not consume by broadcast way"
            )
        wanted = group.subscriptions.get(header.topic)
        if not isinstance(wanted, SubscriptionData):
            raise SubscriptionNotFoundError("the consumer's subscription not exist")
        by_sql = is_sql(wanted.expression_type)
        if wanted.version < header.sub_version:
            # Java 5.x takes a new version whenever its queues change, and at times fails to send
            # the heartbeat that tells us: refused, it would stand still until the next one, for up
            # to 30 s. It looks at the tags itself, so it may get everything meanwhile.
            if language == _FILTERS_TAGS_ITSELF and not by_sql:
                return None, None
            raise SubscriptionNotLatestError("the consumer's subscription not latest")
        if by_sql:
            return None, compile_sql(wanted.expression)
        return subscription_codes(wanted.expression, wanted.tags, wanted.codes), None
