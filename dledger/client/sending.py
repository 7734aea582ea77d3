"""Makes the attempts for one batch until it is stored, refused for good, or out of time.

A batch carries its producer's id and the number of its first message in that queue, the same with
every attempt: so a broker that has stored it knows the next attempt for a repetition. That holds
for the same messages in the same queue only. So once an attempt had an unknown outcome, a batch
stays together and where it is, until it is acknowledged or the time of its last message is over.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import logging
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

from dledger.client.attempt import Attempt, Request
from dledger.client.batching import Pending, encode_elements, total_messages
from dledger.client.config import ProducerConfig
from dledger.client.isolation import NO_ANSWER_S, Isolation
from dledger.client.results import SendResult
from dledger.client.retry import Step, backoff_s, judge
from dledger.client.session import SILENCE_S, ClientSession
from dledger.client.turns import Turns
from dledger.client.versions import BrokerVersions
from dledger.clock import Clock
from dledger.codes import (
    AUTO_CREATE_TOPIC,
    EXT_DEDUPLICATED,
    EXT_NO_FORWARD,
    EXT_PRODUCER_ID,
    EXT_SEQUENCE,
    RequestCode,
    ResponseCode,
)
from dledger.errors import (
    BrokerResponseError,
    DLedgerError,
    MessageRejectedError,
    RemoteProtocolError,
    RequestTimeoutError,
    SendFailedError,
)
from dledger.message import get_property
from dledger.model import MessageQueue, SendStatus
from dledger.remoting.commands import Command
from dledger.remoting.errors import response_error

STATUS = {
    int(ResponseCode.SUCCESS): SendStatus.SEND_OK,
    int(ResponseCode.FLUSH_DISK_TIMEOUT): SendStatus.FLUSH_DISK_TIMEOUT,
    int(ResponseCode.SLAVE_NOT_AVAILABLE): SendStatus.SLAVE_NOT_AVAILABLE,
    int(ResponseCode.FLUSH_SLAVE_TIMEOUT): SendStatus.FLUSH_SLAVE_TIMEOUT,
}
_NOT_LEADER_HINTS_MAX = 2  # believe so many hints in a row; then ask round instead
_ATTEMPT_MIN_S = 0.2
# Gets the outcome of an attempt that succeeded; or else the attempt.
Ended = Callable[["Attempt | Outcome"], None]
logger = logging.getLogger(__name__)
_attempts = operator.attrgetter("attempts")
_keys = operator.attrgetter("keys")
_TIMERS = (b"TIMER_DELAY_SEC", b"TIMER_DELAY_MS", b"TIMER_DELIVER_MS")


@dataclass(slots=True)
class Outcome:
    """What became of a batch.

    Attributes:
        sent: Messages stored.
        done: Messages with a result or an error, in order.
        again: Messages to be sent again from the front of where they waited.
    """

    sent: int = 0
    done: list[Pending] = field(default_factory=list)
    again: list[Pending] = field(default_factory=list)


def send_header(
    config: ProducerConfig, group: str, queue: MessageQueue, batch: list[Pending], born_ms: int
) -> dict[str, object]:
    """Returns the extension fields (short names) of a send request for these messages."""
    first = batch[0]
    is_batch = len(batch) > 1 or bool(first.keys)
    header: dict[str, object] = {
        "a": group,
        "b": queue.topic,
        "c": AUTO_CREATE_TOPIC,
        "d": config.default_topic_queue_count,
        "e": queue.queue_id,
        "f": 0 if is_batch else first.sys_flag,
        "g": born_ms,
        "h": 0 if is_batch else first.flag,
        "j": 0,
        "k": "false",
        "m": "true" if is_batch else "false",
        "n": queue.broker_name,
    }
    if not is_batch:
        header["i"] = first.properties.decode()
    return header


def producer_id_of(unique_key: str) -> str:
    """Returns the id of the producer that made this key: as unique as the key, in 64 bits."""
    return hashlib.blake2b(unique_key.encode(), digest_size=8).hexdigest()


class BatchSender:
    """Sends batches for one producer; the next one to a queue only when the last has ended.

    Holds no state between batches but counters, and what it knows of brokers.
    """

    def __init__(
        self,
        session: ClientSession,
        config: ProducerConfig,
        group: str,
        clock: Clock,
        producer_id: str,
    ) -> None:
        self._session = session
        self._producer_id = producer_id
        self._sequences: dict[MessageQueue, int] = {}
        self._isolation = Isolation()
        self._versions = BrokerVersions(session)
        self._plain: set[str] = set()  # broker names that do not recognise repetitions
        self._config = config
        self._group = group
        self._clock = clock
        self._attempts: dict[Attempt, Ended] = {}  # without a task, the oldest first
        self._looks = False  # whether a timer runs, one for all of them
        self._turns = Turns()
        self.requests = 0
        self.retries = 0

    def begin(self, queue: MessageQueue, batch: list[Pending], ended: Ended) -> bool:
        """Makes the first attempt for a batch at once, if its leader is known and connected.

        Args:
            queue: Where to.
            batch: As `deliver`.
            ended: Gets the outcome of success; or the attempt, for `deliver` to go on with, if it
                has failed or was not answered for a while.

        Returns:
            Whether it did; else nothing has happened.
        """
        connection = self._session.ready(queue.broker_name)
        if connection is None:
            return False
        first = batch[0]
        is_batch = len(batch) > 1 or bool(first.keys)
        loop = asyncio.get_running_loop()
        now = loop.time()
        in_time = min(first.deadline - now, self._config.attempt_timeout_s) > 2 * SILENCE_S
        if not in_time or (not is_batch and b"TIMER_D" in first.properties):
            return False

        request = self._make_request(queue, batch, is_batch=is_batch)
        self.requests += 1
        address = connection.address
        attempt = Attempt(queue, batch, request, address, now, self._attempt_ended)
        self._attempts[attempt] = ended
        try:
            attempt.sent(connection.ask(*request, attempt.end))
        except DLedgerError as error:
            attempt.end(None, error)
        if not self._looks:
            self._looks = True
            loop.call_later(SILENCE_S, self._look_for_silent)
        return True

    def _attempt_ended(self, attempt: Attempt, response: Command | None) -> None:
        ended = self._attempts.pop(attempt, None)
        if ended is None:
            return  # handed over already
        if response is None or response.code not in STATUS:
            ended(attempt)
            return
        self._note_answer(attempt.queue, attempt.address, response, attempt.began)
        if total_messages(attempt.batch) < self._config.batch_messages_min:
            self._hand_out(attempt, response, ended)
        else:  # many will be woken
            self._turns.call(functools.partial(self._hand_out, attempt, response, ended))

    def _hand_out(self, attempt: Attempt, response: Command, ended: Ended) -> None:
        outcome: Attempt | Outcome = attempt
        try:
            outcome = self._succeed(attempt.queue, attempt.batch, response)
        except Exception:
            # A bug of ours, which must not end the connection; `deliver` meets it again.
            logger.exception("answer not taken queue=%s", attempt.queue)
        ended(outcome)

    def _look_for_silent(self) -> None:
        """Hands over the attempts that have waited for long."""
        loop = asyncio.get_running_loop()
        while self._attempts:
            attempt = next(iter(self._attempts))
            due = attempt.began + SILENCE_S
            if due > loop.time():
                loop.call_at(due, self._look_for_silent)
                return
            self._attempts.pop(attempt)(attempt)
        self._looks = False

    async def deliver(
        self,
        queue: MessageQueue,
        batch: list[Pending],
        *,
        may_leave: bool,
        attempt: Attempt | None = None,
    ) -> Outcome:
        """Attempts to store a batch in one queue and gives its messages their results.

        Args:
            queue: Where to.
            batch: Messages, or user-made batches of them, in order; one that is alone, or all
                batchable.
            may_leave: Another broker group can take messages that are not pinned, so return them
                instead of waiting for this group's next leader.
            attempt: What `begin` made of it.
        """
        if attempt is None:
            is_batch = len(batch) > 1 or bool(batch[0].keys)
            # Looked for in the raw bytes first: hardly any message is delayed.
            may_wait = not is_batch and b"TIMER_D" in batch[0].properties
            if may_wait and await self._would_be_early(queue.broker_name, batch[0].properties):
                return self._fail(batch, levels_only(queue.broker_name))
            request = self._make_request(queue, batch, is_batch=is_batch)
        else:
            request = attempt.request
        may_leave = may_leave and not batch[0].pinned
        bound = False  # may be stored already: only the same again, at the same place
        error: DLedgerError = RequestTimeoutError("no attempt could be made in time")
        failures = hints = 0
        loop = asyncio.get_running_loop()
        # An attempt that cannot be answered in time would only make a refusal unknown.
        room_s = min(_ATTEMPT_MIN_S, self._config.send_timeout_s / 4)
        while True:
            deadline = batch[0].deadline
            over = loop.time() + room_s
            if bound:
                deadline = max(item.deadline for item in batch)
                self._fail([item for item in batch if item.deadline <= over], error)
            if over >= deadline and attempt is None:
                return self._expire(batch, error, over)
            try:
                address = (attempt and attempt.address) or await self._session.leader(
                    queue.broker_name, deadline - room_s, confirm=hints >= _NOT_LEADER_HINTS_MAX
                )
            except DLedgerError as exc:
                error = exc if not failures else error
                if loop.time() < deadline - room_s:
                    return self._fail(batch, error)  # closed
                continue
            begun, attempt = attempt, None
            self.requests += begun is None
            self.retries += failures > 0
            try:
                response = await self._ask(queue, address, request, deadline, begun)
                if response.code in STATUS:
                    return self._succeed(queue, batch, response)
                error = response_error(response, address)
            except DLedgerError as exc:
                self._session.note_failure(queue.broker_name, address, exc)
                if isinstance(exc, RequestTimeoutError):
                    self._isolation.note(queue.broker_name, NO_ANSWER_S, loop.time())
                error = exc
            failures += 1
            verdict = judge(error)
            self._count(batch, verdict.definite)
            bound = bound or (not verdict.definite and self._recognises(queue.broker_name))
            if not verdict.definite and not self._config.retry_unknown:
                return self._fail(batch, error)
            hints = hints + 1 if verdict.step is Step.FIND_LEADER else 0
            if verdict.step is Step.GIVE_UP:
                if len(batch) > 1 and not bound:
                    return await self._one_by_one(queue, batch, may_leave=may_leave)
                return self._fail(batch, error)
            if verdict.step is Step.ELSEWHERE and not self._may_be_refused_again(batch):
                return self._fail(batch, error)
            elsewhere = await self._prepare_retry(queue, verdict.step, failures, deadline)
            if elsewhere and may_leave and not bound:
                return Outcome(again=batch)

    def _make_request(
        self, queue: MessageQueue, batch: list[Pending], *, is_batch: bool
    ) -> Request:
        """Returns code, header and body; the same for all attempts, and numbered."""
        body = batch[0].body if len(batch) == 1 else encode_elements(batch)
        code = RequestCode.SEND_BATCH_MESSAGE if is_batch else RequestCode.SEND_MESSAGE_V2
        header = send_header(self._config, self._group, queue, batch, self._clock.wall_ms())
        header[EXT_NO_FORWARD] = "1"
        if self._config.idempotent:
            header[EXT_PRODUCER_ID] = self._producer_id
            header[EXT_SEQUENCE] = self._take_sequence(queue, total_messages(batch))
        return code, header, body

    async def _ask(
        self,
        queue: MessageQueue,
        address: str,
        request: Request,
        deadline: float,
        attempt: Attempt | None,
    ) -> Command:
        """Makes one attempt, or goes on with one; notes that the leader answers, and how soon."""
        session, name = self._session, queue.broker_name
        now = asyncio.get_running_loop().time()
        began = now if attempt is None else attempt.began
        left = min(self._config.attempt_timeout_s, deadline - began)
        if attempt is None:
            response = await session.ask_leader(name, address, *request, timeout_s=left)
        else:
            try:
                async with asyncio.timeout_at(began + left):
                    response = await session.await_answer(
                        name, address, attempt.wait(), silent_s=now - began
                    )
            except TimeoutError:
                text = f"no answer from {address} to request {request[0]} within {left:g} s"
                raise RequestTimeoutError(text) from None
        self._note_answer(queue, address, response, began)
        return response

    def _note_answer(
        self, queue: MessageQueue, address: str, response: Command, began: float
    ) -> None:
        now = asyncio.get_running_loop().time()
        self._session.note_answer(queue.broker_name, address, response)
        self._isolation.note(queue.broker_name, now - began, now)

    def _may_be_refused_again(self, batch: list[Pending]) -> bool:
        """Counts a refusal; whether a batch may go on to where it may be refused once more."""
        if max(item.refusals for item in batch) >= self._config.refusals_max:
            return False
        for item in batch:
            item.refusals += 1
        return True

    def is_quick(self, broker_name: str) -> bool:
        """Whether a broker group has a leader, and has not been slow lately."""
        if not self._session.has_leader(broker_name):
            return False
        now_s = asyncio.get_running_loop().time()
        return not self._config.isolate_slow_groups or self._isolation.is_free(broker_name, now_s)

    async def _would_be_early(self, broker_name: str, properties: bytes) -> bool:
        """Whether a broker would overlook a message's delay and deliver it at once."""
        if not any(get_property(properties, name) is not None for name in _TIMERS):
            return False
        try:
            return await self._versions.is_before_5(broker_name)
        except DLedgerError:
            return False  # nobody answers now; ours and newer ones are by far the likelier

    def _take_sequence(self, queue: MessageQueue, count: int) -> int:
        first = self._sequences.get(queue, 0)
        self._sequences[queue] = first + count
        return first

    def _recognises(self, broker_name: str) -> bool:
        """Whether a broker recognises repetitions; believed of one that was never heard of."""
        return self._config.idempotent and broker_name not in self._plain

    async def _prepare_retry(
        self, queue: MessageQueue, step: Step, failures: int, deadline: float
    ) -> bool:
        """Waits or asks as the step needs; returns whether another group is a better place now."""
        if step is Step.FIND_LEADER:
            if self._session.has_leader(queue.broker_name):
                return False
            self._session.seek_leader(queue.broker_name)
            return True
        if step is Step.ELSEWHERE:
            self._session.refresh_soon(queue.topic)
        await self._pause(failures, deadline)
        return step is Step.ELSEWHERE

    async def _pause(self, failures: int, deadline: float) -> None:
        left = deadline - asyncio.get_running_loop().time()
        await asyncio.sleep(max(0.0, min(backoff_s(failures), left)))

    async def _one_by_one(
        self, queue: MessageQueue, batch: list[Pending], *, may_leave: bool
    ) -> Outcome:
        """A broker refuses a batch as a whole; so find out which message it does not like."""
        total = Outcome()
        for index, item in enumerate(batch):
            part = await self.deliver(queue, [item], may_leave=may_leave)
            total.sent += part.sent
            total.done += part.done
            if part.again:
                total.again = batch[index:]
                break
        return total

    @staticmethod
    def _count(batch: list[Pending], definite: bool) -> None:
        for item in batch:
            item.attempts += 1
            if not definite:
                item.unknown += 1

    def _succeed(self, queue: MessageQueue, batch: list[Pending], response: Command) -> Outcome:
        ext = response.ext
        status = STATUS[response.code]
        try:
            offset = int(ext["queueOffset"])
            stored = MessageQueue(queue.topic, queue.broker_name, int(ext["queueId"]))
            ids = ext["msgId"].split(",")
        except (KeyError, ValueError) as exc:
            self._count(batch, definite=False)
            error = RemoteProtocolError(f"success without its fields: {exc!r}")
            return self._fail(batch, error)
        count = total_messages(batch)
        recognised = ext.get(EXT_DEDUPLICATED)
        if recognised is None:
            self._plain.add(queue.broker_name)
        twice = recognised is None or not self._config.idempotent
        again = recognised == "1"
        if len(ids) != count:
            ids = [ids[0]] * count
        ordinary = len(batch) > 1 and not any(map(_keys, batch))
        if ordinary and not again and not any(map(_attempts, batch)):
            # Nearly always: an ordinary batch at its first attempt. The rest is as by default.
            places = range(offset, offset + count)
            for item, name, place in zip(batch, ids, places, strict=True):
                future = item.future
                if not future.done():
                    future.set_result(SendResult(item.key, name, stored, place, status))
                elif not future.cancelled():
                    count -= 1  # somebody else has given it a result
            return Outcome(sent=count, done=batch)
        at = 0
        for item in batch:
            attempts = item.attempts + 1
            result: Any
            if item.keys:
                stop = at + len(item.keys)
                result = list(
                    map(
                        SendResult,
                        item.keys,
                        ids[at:stop],
                        repeat(stored),
                        range(offset + at, offset + stop),
                        repeat(status),
                        repeat(item.unknown),
                        repeat(attempts),
                        repeat(again),
                        repeat(twice and item.unknown > 0),
                    )
                )
                at = stop
            else:
                result = SendResult(
                    *(item.key, ids[at], stored, offset + at, status, item.unknown, attempts),
                    deduplicated=again,
                    may_be_twice=twice and item.unknown > 0,
                    recall_handle=ext.get("recallHandle", "") if count == 1 else "",
                )
                at += 1
            if not item.future.done():
                item.future.set_result(result)
            elif not item.future.cancelled():
                count -= len(item.keys) or 1  # its time was over; it counts as failed
        return Outcome(sent=count, done=batch)

    def _fail(self, batch: list[Pending], error: DLedgerError) -> Outcome:
        for item in batch:
            if not item.future.done():
                item.future.set_exception(final_error(item, error))
        return Outcome(done=batch)

    def _expire(self, batch: list[Pending], error: DLedgerError, now: float) -> Outcome:
        """Ends the messages whose time is over; younger ones go on from the front."""
        expired = [item for item in batch if item.deadline <= now]
        outcome = self._fail(expired, error)
        outcome.again = [item for item in batch if item.deadline > now]
        return outcome


def levels_only(broker_name: str) -> MessageRejectedError:
    """Returns why a message with a delay of its own is not sent to a broker of before 5.0."""
    return MessageRejectedError(
        f"{broker_name} knows delays by level only: set the property DELAY to 1..18"
    )


def final_error(item: Pending, error: DLedgerError) -> DLedgerError:
    """Returns what the caller of one message gets when its last attempt ended with `error`."""
    if item.attempts == 0 and error.definite:
        return error
    refused = judge(error).step in (Step.GIVE_UP, Step.ELSEWHERE)
    if refused and isinstance(error, BrokerResponseError) and item.unknown == 0:
        return BrokerResponseError(error.code, error.remark, address=error.address)
    failed = SendFailedError(
        str(error), attempts=item.attempts, outcome_unknown_attempts=item.unknown
    )
    failed.__cause__ = error
    return failed
