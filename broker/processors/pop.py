"""POP_MESSAGE (200050), PEEK_MESSAGE, NOTIFICATION and POLLING_INFO. Serving leader only.

A pop looks at the queues of its topic, chooses, and proposes its choice; what it has chosen is
given out when the entry is applied. Meanwhile the same group gets nothing else of those queues.
A pop that finds nothing waits: for new messages, for some that are out to be visible again, or for
its time to be over.

Source: RocketMQ `PopMessageProcessor`, `PopLongPollingService`, `NotificationProcessor`,
`PeekMessageProcessor`. We differ: a group's retry topic is popped only by who names it.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from broker.catalog import Catalog
from broker.context import FATAL_ERRORS, BrokerContext
from broker.feature_commands import encode_feature
from broker.filters import TagCodes, is_sql, parse_tag_expression
from broker.long_polls import LongPolls, ParkedPull
from broker.messages import MessageReader
from broker.offset_resets import PendingResets
from broker.pop_answers import answer_ext, body_of
from broker.pop_choice import Choice, QueueView, Test, Wish
from broker.pop_dead_letters import PopDeadLetters
from broker.pop_requests import ANY_QUEUE, Look, PopRequest, is_worth
from broker.pop_state import Part, PopMessages, Popped
from broker.reading import check_group, count_fetched, readable_topic
from broker.sql_filter import SqlFilter, compile_sql
from dledger.codes import EXT_FORWARDED, ResponseCode
from dledger.errors import (
    DLedgerError,
    FlowControlError,
    InvalidParameterError,
    InvariantError,
    NotLeaderError,
    TopicNotFoundError,
)
from dledger.message import stored_properties, stored_reconsume_times
from dledger.remoting.commands import Command
from dledger.remoting.headers import to_ext
from dledger.remoting.pop_headers import (
    NotificationHeader,
    NotificationResponse,
    PeekMessageHeader,
    PollingInfoHeader,
    PopMessageHeader,
)
from dledger.remoting.server import Connection

logger = logging.getLogger(__name__)

COUNT_MAX: Final = 256
BYTES_MAX: Final = 1024 * 1024
INVISIBLE_MAX_MS: Final = 3 * 86_400_000
_ATTEMPT_ID_MAX: Final = 256
_ALL_OFFSETS: Final = 1 << 62
_FROM_NEWEST: Final = 1
# Of the time that a follower waits for the leader's answer, what a pop may wait.
_FORWARDED_SHARE: Final = 0.6


class PopProcessor:
    """Answers pops now or when there is something to answer. Satisfies `RaftListener`."""

    def __init__(
        self,
        context: BrokerContext,
        catalog: Catalog,
        reader: MessageReader,
        resets: PendingResets,
        *,
        redirect: Callable[[Connection, Command], None],
    ) -> None:
        """Prepares the processor.

        Args:
            context: The broker's parts.
            catalog: Topics and groups.
            reader: Reads stored messages.
            resets: Which groups have still to move.
            redirect: Takes a request that had no effect because this replica stopped leading.
        """
        self._context = context
        self._catalog = catalog
        self._reader = reader
        self._resets = resets
        self._redirect = redirect
        limits = context.config.limits
        self._polls = LongPolls(
            parked_max=limits.parked_pulls_max,
            parked_per_owner_max=limits.parked_pulls_per_connection_max,
        )
        self.dead_letters: PopDeadLetters | None = None  # set by whoever puts the parts together
        # Queues of groups of which something is proposed, and those that others waited for.
        self._busy: set[tuple[str, int, int]] = set()
        self._wanted: set[tuple[str, int, int]] = set()
        self._turn = itertools.count()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due_ms = 0
        # Wall clock at which something of a topic in which pops wait is visible again.
        self._visible: dict[int, int] = {}
        self._to_wake: dict[tuple[int, int], None] = {}
        # Topics of which more could be given out if less were out.
        self._full: set[int] = set()

    # --- requests -------------------------------------------------------------------------------

    def pop(self, connection: Connection, command: Command) -> None:
        """200050: gives messages out, or waits for some.

        Raises:
            DLedgerError: Refused.
        """
        header = command.header(PopMessageHeader)
        if not 0 < header.invisible_ms <= INVISIBLE_MAX_MS:
            raise InvalidParameterError(f"invisibleTime must lie in 1..{INVISIBLE_MAX_MS} ms")
        if header.message_count_max < 1:
            raise InvalidParameterError("maxMsgNums must be at least 1")
        request = self._admit(connection, command, header)
        request.count_max = min(header.message_count_max, COUNT_MAX)
        request.invisible_ms = header.invisible_ms
        request.from_newest = header.init_mode == _FROM_NEWEST
        self._run(request)

    def notify(self, connection: Connection, command: Command) -> None:
        """200054: answers when a pop would find something, or when the time is over."""
        request = self._admit(connection, command, command.header(NotificationHeader))
        request.is_question = True
        self._run(request)

    def peek(self, connection: Connection, command: Command) -> None:
        """200052: shows what a pop would get that was never given out; changes nothing."""
        header = command.header(PeekMessageHeader)
        topic = readable_topic(self._context, header.topic, header.queue_id, any_queue=True)
        check_group(self._context, self._catalog, header.consumer_group)
        request = PopRequest(connection, command, topic)
        request.wish = Wish(header.consumer_group)
        request.queue_id = header.queue_id
        request.count_max = max(1, min(header.message_count_max, COUNT_MAX))
        look = self._look(request)
        self._answer(request, look, self._context.clock.wall_ms())

    def polling_info(self, connection: Connection, command: Command) -> None:
        """200055: how many pops wait at a queue."""
        header = command.header(PollingInfoHeader)
        topic = readable_topic(self._context, header.topic, header.queue_id, any_queue=True)
        waiting = self._polls.waiting(topic.topic_id, header.queue_id)
        group = header.consumer_group
        count = sum(1 for parked in waiting if parked.request.wish.group == group)
        connection.reply(command, 0, {"pollingNum": str(count)})

    def _admit(
        self,
        connection: Connection,
        command: Command,
        header: PopMessageHeader | NotificationHeader,
    ) -> PopRequest:
        context = self._context
        topic = readable_topic(context, header.topic, header.queue_id, any_queue=True)
        check_group(context, self._catalog, header.consumer_group)
        if len(header.attempt_id) > _ATTEMPT_ID_MAX:
            raise InvalidParameterError(f"attemptId exceeds {_ATTEMPT_ID_MAX} characters")
        codes: TagCodes = None
        test: Test | None = None
        if header.expression:
            if is_sql(header.expression_type):
                test = self._tester(compile_sql(header.expression))
            else:
                codes = parse_tag_expression(header.expression)
        request = PopRequest(connection, command, topic)
        request.queue_id = header.queue_id
        request.wish = Wish(
            header.consumer_group,
            codes,
            test,
            header.order,
            header.attempt_id,
            self._deliveries_max(header.consumer_group),
        )
        request.signature = (
            header.consumer_group,
            topic.topic_id,
            header.queue_id,
            header.expression_type,
            header.expression,
            header.order,
            header.attempt_id,
        )
        timing = context.config.timing
        longest_s = timing.suspend_max_s
        if command.ext.get(EXT_FORWARDED):
            longest_s = min(longest_s, timing.forward_timeout_s * _FORWARDED_SHARE)
        request.deadline_ms = self._now_ms() + max(0, min(header.poll_ms, int(longest_s * 1000)))
        return request

    def _tester(self, sql: SqlFilter) -> Test:
        read = self._context.log.read
        return lambda at, size: sql.matches_raw(stored_properties(read(at, size)))

    def _deliveries_max(self, name: str) -> Callable[[int, int], int | None]:
        read, store = self._context.log.read, self._context.store

        def limit(at: int, size: int) -> int | None:
            group = store.group(name)
            if group is None or group.retry_max < 0:
                return None
            return max(1, group.retry_max + 1 - stored_reconsume_times(read(at, size)))

        return limit

    # --- choosing and giving out ----------------------------------------------------------------

    def _run(self, request: PopRequest) -> None:
        look = self._look(request)
        if request.is_question:
            if look.count:
                self._answer_question(request, has_message=True)
                return
            self._wait(request, look)
            return
        if look.count:
            self._give_out(request, look)
            return
        if look.found:
            self._note_skipped(request, look)
        self._wait(request, look)

    def _look(self, request: PopRequest) -> Look:
        """Chooses from the request's queues, in turn."""
        look = Look()
        context, topic, wish = self._context, request.topic, request.wish
        now_ms = context.clock.wall_ms()
        size = 0
        for queue_id in self._queues(request):
            place = (wish.group, topic.topic_id, queue_id)
            if place in self._busy:
                look.busy = True
                self._wanted.add(place)
                continue
            choice = self._view(request, queue_id).choose(
                now_ms, count_max=request.count_max - look.count, bytes_max=BYTES_MAX - size
            )
            self._bury(request, queue_id, choice)
            look.rest += choice.rest
            if choice.is_full:
                self._full.add(topic.topic_id)
            if choice.visible_ms is not None:
                look.visible_ms = min(look.visible_ms or choice.visible_ms, choice.visible_ms)
            if choice.part is not None and (choice.messages or is_worth(choice)):
                look.found.append((queue_id, choice))
            look.count += len(choice.messages)
            size += sum(message.size_bytes for message in choice.messages)
            if look.count >= request.count_max or size >= BYTES_MAX:
                break
        return look

    def _queues(self, request: PopRequest) -> Iterable[int]:
        if request.queue_id != ANY_QUEUE:
            return (request.queue_id,)
        count = request.topic.read_queue_count
        first = next(self._turn)
        return ((first + number) % count for number in range(count))

    def _view(self, request: PopRequest, queue_id: int) -> QueueView:
        store, topic = self._context.store, request.topic

        def first_offset() -> int:
            low, high = store.queue_bounds(topic.topic_id, queue_id)
            young_bytes = self._context.config.young_queue_bytes
            if request.from_newest and not self._reader.begins_young(
                topic.topic_id, queue_id, young_bytes
            ):
                return high
            return low

        return QueueView(store, request.wish, topic, queue_id, first_offset)

    def _bury(self, request: PopRequest, queue_id: int, choice: Choice) -> None:
        if self.dead_letters is not None:
            for dead in choice.dead:
                self.dead_letters.bury(request.wish.group, request.topic.name, queue_id, dead)

    def _give_out(self, request: PopRequest, look: Look) -> None:
        def decided(popped: Popped | None, error: DLedgerError | None) -> None:
            if popped is None:
                self._fail(request, error or InvariantError("a pop was not decided"))
                return
            pairs = zip(look.found, popped.accepted, strict=True)
            look.found = [found for found, is_accepted in pairs if is_accepted]
            if any(choice.messages for _, choice in look.found):
                self._note_visible(request, self._context.clock.wall_ms() + request.invisible_ms)
                # Retention may have taken a message since it was chosen.
                self._guarded(lambda given: self._answer(given, look, popped.pop_ms), request)
            else:
                # Somebody moved the group meanwhile: from there, then.
                self._guarded(self._run, request)

        try:
            self._propose(request, look, decided)
        except FATAL_ERRORS:
            raise
        except DLedgerError as error:
            self._fail(request, error)

    def _note_skipped(self, request: PopRequest, look: Look) -> None:
        """Has it remembered that nothing is wanted up to here; best effort."""
        try:
            self._propose(request, look, lambda _popped, _error: None)
        except FATAL_ERRORS:
            raise
        except DLedgerError as error:
            logger.debug("skipped messages not noted: %s", error)

    def _propose(
        self,
        request: PopRequest,
        look: Look,
        decided: Callable[[Popped | None, DLedgerError | None], None],
    ) -> None:
        self._context.gate.check()
        group, topic = request.wish.group, request.topic
        parts: list[Part] = [choice.part for _, choice in look.found if choice.part is not None]
        places = {(group, topic.topic_id, queue_id) for queue_id, _ in look.found}
        command = PopMessages(
            group,
            self._context.clock.wall_ms(),
            request.invisible_ms,
            request.wish.attempt_id if request.wish.order else "",
            parts,
        )
        self._busy |= places

        def done(result: object, error: DLedgerError | None) -> None:
            self._free(places)
            if error is None and not isinstance(result, Popped):
                raise InvariantError(f"popping returned {result!r}")
            for place in sorted(places):
                self._follow_reset(place)
            decided(result if isinstance(result, Popped) else None, error)

        try:
            self._context.raft.propose(encode_feature(command), done)
        except DLedgerError:
            self._free(places)
            raise

    def _follow_reset(self, place: tuple[str, int, int]) -> None:
        """Popping goes where the group was moved at once: there is nobody left to follow."""
        target = self._resets.target(place)
        if target is not None and self._context.raft.is_serving:
            self._resets.has_come(place, target)

    def _free(self, places: set[tuple[str, int, int]]) -> None:
        self._busy -= places
        for place in sorted(places & self._wanted):
            self._wanted.discard(place)
            self._wake_soon(place[1], place[2])

    # --- answering ------------------------------------------------------------------------------

    def _answer(self, request: PopRequest, look: Look, pop_ms: int) -> None:
        found = [(queue_id, choice) for queue_id, choice in look.found if choice.messages]
        ext = answer_ext(request.topic.name, found, order=request.wish.order)
        ext["popTime"] = str(pop_ms)
        ext["invisibleTime"] = str(request.invisible_ms)
        ext["restNum"] = str(look.rest)
        if not found:
            self._context.statistics.found_nothing()
            code = ResponseCode.POLLING_TIMEOUT
            request.connection.reply(request.command, int(code), ext, "NO_MESSAGE_IN_QUEUE")
            return
        body = body_of(found, self._context.log.read)
        count = sum(len(choice.messages) for _, choice in found)
        size_bytes = sum(len(part) for part in body)
        group, topic = request.wish.group, request.topic.name
        count_fetched(self._context, group, topic, count, size_bytes)
        request.connection.reply(request.command, 0, ext, "FOUND", body)

    def _answer_question(
        self, request: PopRequest, *, has_message: bool, is_full: bool = False
    ) -> None:
        answer = NotificationResponse(has_message=has_message, is_full=is_full)
        request.connection.reply(request.command, 0, to_ext(answer))

    def _fail(self, request: PopRequest, error: DLedgerError) -> None:
        if isinstance(error, NotLeaderError):
            self._redirect(request.connection, request.command)
        else:
            request.connection.reply_error(request.command, error)

    # --- waiting --------------------------------------------------------------------------------

    def _wait(self, request: PopRequest, look: Look) -> None:
        if request.connection.is_closing:
            return
        if self._now_ms() >= request.deadline_ms:
            self._give_up(request)
            return
        parked = ParkedPull(
            owner=request.connection.id,
            topic_id=request.topic.topic_id,
            queue_id=request.queue_id,
            offset=0,
            deadline_ms=request.deadline_ms,
            request=request,
        )
        try:
            self._polls.park(parked)
        except FlowControlError as error:
            if request.is_question:
                self._answer_question(request, has_message=False, is_full=True)
            else:
                ext = answer_ext(request.topic.name, [], order=request.wish.order)
                code = int(ResponseCode.POLLING_FULL)
                request.connection.reply(request.command, code, ext, str(error))
            return
        if look.visible_ms is not None:
            self._note_visible(request, look.visible_ms)
        self._arm()

    def _give_up(self, request: PopRequest) -> None:
        if request.is_question:
            self._answer_question(request, has_message=False)
        else:
            self._answer(request, Look(), self._context.clock.wall_ms())

    def _note_visible(self, request: PopRequest, visible_ms: int) -> None:
        """Notes when waiting pops of the topic are to look again."""
        topic_id = request.topic.topic_id
        self._visible[topic_id] = min(self._visible.get(topic_id, visible_ms), visible_ms)
        self._arm()

    def _arm(self) -> None:
        due_ms = self._polls.next_deadline_ms()
        if due_ms is None:
            self._visible.clear()
            return
        if self._visible:
            wait_ms = min(self._visible.values()) - self._context.clock.wall_ms()
            due_ms = min(due_ms, self._now_ms() + max(1, wait_ms))
        if self._timer is not None:
            if self._timer_due_ms <= due_ms:
                return
            self._timer.cancel()
        self._timer_due_ms = due_ms
        delay_s = max(0, due_ms - self._now_ms()) / 1000
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._tick)

    def _tick(self) -> None:
        self._timer = None
        now_ms = self._context.clock.wall_ms()
        for topic_id in [topic for topic, due_ms in self._visible.items() if due_ms <= now_ms]:
            del self._visible[topic_id]
            self._wake(self._polls.drop_topic(topic_id))
        for parked in self._polls.expire(self._now_ms()):
            self._guarded(self._give_up, parked.request)
        self._arm()

    def _now_ms(self) -> int:
        return int(self._context.clock.monotonic() * 1000)

    # --- events ---------------------------------------------------------------------------------

    def queues_grew(self, queues: Mapping[tuple[int, int], int]) -> None:
        """Notes queues, (topic id, queue id), that got messages: waiting pops look again soon."""
        if len(self._polls):
            for topic_id, queue_id in queues:
                self._wake_soon(topic_id, queue_id)

    def acknowledged(self, topic: str) -> None:
        """Notes that less of a topic is out than before."""
        config = self._context.store.topic(topic)
        if self._full and config is not None and config.topic_id in self._full:
            self._full.discard(config.topic_id)
            self.visibility_changed(topic)

    def visibility_changed(self, topic: str) -> None:
        """Notes that messages of a topic may be visible earlier, or no longer in the way."""
        config = self._context.store.topic(topic)
        if config is not None and len(self._polls):
            for queue_id in range(config.read_queue_count):
                self._wake_soon(config.topic_id, queue_id)

    def topics_changed(self) -> None:
        """Answers the pops that wait in topics that are gone."""
        for topic_id in self._polls.topic_ids():
            if self._context.store.topic_by_id(topic_id) is not None:
                continue
            for parked in self._polls.drop_topic(topic_id):
                request: PopRequest = parked.request
                error = TopicNotFoundError(f"topic {request.topic.name} was deleted")
                request.connection.reply_error(request.command, error)

    def connection_lost(self, connection: Connection) -> None:
        """Forgets the pops of a connection."""
        self._polls.drop_owner(connection.id)

    def on_serving(self, term: int) -> None:
        """Does nothing."""

    def on_stopped_serving(self) -> None:
        """Hands what waits to the next leader."""
        for parked in self._polls.drop_all():
            request: PopRequest = parked.request
            self._redirect(request.connection, request.command)

    def on_leader_changed(self, leader_id: str | None, term: int) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Answers everything that waits: nothing was found."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for parked in self._polls.drop_all():
            self._guarded(self._give_up, parked.request)

    def _wake_soon(self, topic_id: int, queue_id: int) -> None:
        if not len(self._polls):
            return
        if not self._to_wake:
            asyncio.get_running_loop().call_soon(self._wake_noted)
        self._to_wake[topic_id, queue_id] = None

    def _wake_noted(self) -> None:
        places, self._to_wake = self._to_wake, {}
        woken: list[ParkedPull] = []
        for topic_id, queue_id in places:
            woken.extend(self._polls.arrived(topic_id, queue_id, _ALL_OFFSETS))
            woken.extend(self._polls.arrived(topic_id, ANY_QUEUE, _ALL_OFFSETS))
        self._wake(woken)

    def _wake(self, woken: list[ParkedPull]) -> None:
        """Lets pops look again. Where one finds nothing, others that ask for the same need not."""
        dry: set[tuple[object, ...]] = set()
        for parked in woken:
            request: PopRequest = parked.request
            if request.signature in dry:
                self._guarded(self._wait_on, request)
                continue
            before = len(self._polls)
            self._guarded(self._run, request)
            if len(self._polls) > before:
                dry.add(request.signature)

    def _wait_on(self, request: PopRequest) -> None:
        self._wait(request, Look())

    def _guarded(self, action: Callable[[PopRequest], None], request: PopRequest) -> None:
        """Runs an action outside of any request: its failure must not cost others their answers."""
        try:
            action(request)
        except Exception as error:
            if isinstance(error, DLedgerError) and not isinstance(error, FATAL_ERRORS):
                self._fail(request, error)
                return
            request.connection.reply_error(request.command, error)
            logger.error("a waiting pop failed", exc_info=error)
            if isinstance(error, FATAL_ERRORS):
                self._context.on_fatal(error)
