"""Requests between their arrival at the leader and their outcome.

Concurrency: the event loop only.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from broker.messages_command import Part
from dledger.errors import DLedgerError, InvariantError
from dledger.model import TopicConfig
from store.producer_lanes import Repeated

_logger = logging.getLogger(__name__)

# (first queue offset, physical offset of each message, None) or (-1, [], error)
AppendCallback = Callable[[int, list[int], DLedgerError | None], None]
Lane = tuple[int, int, int]  # producer id, topic id, queue id


class AppendRequest:
    """Messages of one request on their way, and who waits for their outcome."""

    __slots__ = ("callbacks", "count", "decided", "identity", "lane", "part", "topic")

    def __init__(
        self, part: Part, topic: TopicConfig, queue_id: int, callback: AppendCallback
    ) -> None:
        self.part = part
        self.topic = topic
        self.callbacks = [callback]
        self.identity = part.identity
        self.count = len(part.messages)
        self.decided = False
        identity = part.identity
        self.lane: Lane | None = (
            None if identity is None else (identity.producer_id, topic.topic_id, queue_id)
        )

    def answer(self, error: DLedgerError | None) -> None:
        """Calls everyone back."""
        self.decided = True
        part = self.part
        for callback in self.callbacks:
            if error is None:
                call_back(callback, part.first_queue_offset, part.physical_offsets, None)
            else:
                call_back(callback, -1, [], error)


class RequestsUnderWay:
    """Identified requests that are neither applied nor certainly gone, by lane.

    A proposal whose time is over may still be applied as long as this replica serves. Its request
    stays here until a later one is applied.
    """

    def __init__(self) -> None:
        self._lanes: dict[Lane, list[AppendRequest]] = {}
        self._overdue: list[AppendRequest] = []

    def clear(self) -> None:
        """Forgets everything: another term begins, and decides what was under way."""
        self._lanes.clear()
        self._overdue.clear()

    def add(self, lane: Lane, request: AppendRequest) -> None:
        """Adds a request that was accepted."""
        self._lanes.setdefault(lane, []).append(request)

    def find(self, lane: Lane, sequence: int, count: int) -> AppendRequest | Repeated:
        """Returns the request that this one repeats, or what it is otherwise."""
        next_sequence = 0
        for request in self._lanes.get(lane, ()):
            first = request.identity.sequence if request.identity is not None else 0
            if first == sequence and request.count == count:
                return request
            next_sequence = first + request.count
        return Repeated.NO if sequence >= next_sequence else Repeated.TOO_OLD

    def decided(self, request: AppendRequest, error: DLedgerError | None) -> None:
        """Takes the outcome of a request, before its senders get it."""
        if request.lane is None:
            return
        if error is not None and not error.definite:
            # Its proposal was encoded long ago.
            request.part.messages = ()
            request.part.stems = []
            self._overdue.append(request)
            return
        self._remove(request)

    def applied(self) -> None:
        """Notes that a proposal was applied, and so was every earlier one."""
        overdue, self._overdue = self._overdue, []
        for request in overdue:
            self._remove(request)

    def _remove(self, request: AppendRequest) -> None:
        requests = self._lanes.get(request.lane) if request.lane is not None else None
        if requests is not None and request.lane is not None and request in requests:
            requests.remove(request)
            if not requests:
                del self._lanes[request.lane]


def call_back(
    callback: AppendCallback, first: int, offsets: list[int], error: DLedgerError | None
) -> None:
    """Calls back; one requester's failure must not cost the others their answers."""
    try:
        callback(first, offsets, error)
    except InvariantError:
        raise
    except Exception:
        _logger.exception("append callback failed")
