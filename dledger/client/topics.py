"""One topic as a producer sees it: its lanes, and what waits for them. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from dledger.client.batching import Lane, Pending
from dledger.client.routes import TopicRoute
from dledger.client.selection import RoundRobin, explicit_queue, queue_of_key
from dledger.errors import DLedgerError, InvalidParameterError, RouteNotFoundError
from dledger.model import MessageQueue

Target = MessageQueue | int | None


class TopicLines:
    """Holds a topic's messages until a lane takes them.

    `line` is for messages that any queue may take; pinned ones wait in their lane, or in
    `unplaced` as long as the route does not show their queue.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.route: TopicRoute | None = None
        self.resolving = False  # a task is asking for the route
        self.line: deque[Pending] = deque()
        self._unplaced: deque[tuple[Pending, Target, str | None]] = deque()
        self._lanes: dict[MessageQueue, Lane] = {}
        self._publish: list[Lane] = []
        self._pinned: dict[MessageQueue, Lane] = {}  # lanes that may have something waiting
        self._turn = RoundRobin()

    def __repr__(self) -> str:
        return (
            f"<TopicLines {self.name} line={len(self.line)} unplaced={len(self._unplaced)} "
            f"lanes={len(self._lanes)}>"
        )

    @property
    def needs_route(self) -> bool:
        """Whether something waits that the route at hand gives no place to."""
        return self.route is None or bool(self._unplaced) or (bool(self.line) and not self._publish)

    def use(self, route: TopicRoute) -> None:
        """Takes a (newer) route. Lanes of queues that are gone send what they hold, then idle."""
        self.route = route
        self._publish = [self.lane(queue) for queue in route.publish_queues]

    def lane(self, queue: MessageQueue) -> Lane:
        """Returns the lane of a queue."""
        lane = self._lanes.get(queue)
        if lane is None:
            lane = self._lanes[queue] = Lane(queue)
        return lane

    def place(self, pending: Pending, queue: Target, shard_key: str | None) -> None:
        """Puts a message where it waits: see the class."""
        if queue is None and shard_key is None:
            self.line.append(pending)
            return
        pending.pinned = True
        if self.route is not None and not self._unplaced:
            try:
                target = self.choose(queue, shard_key)
            except (InvalidParameterError, RouteNotFoundError):
                pass  # the queue may be newer than our route
            else:
                self._pin(pending, target)
                return
        self._unplaced.append((pending, queue, shard_key))

    def place_unplaced(self) -> list[tuple[Pending, DLedgerError]]:
        """Places what waited for a fresh route; returns what has no place in that one either."""
        refused: list[tuple[Pending, DLedgerError]] = []
        while self._unplaced:
            pending, queue, shard_key = self._unplaced.popleft()
            try:
                self._pin(pending, self.choose(queue, shard_key))
            except (InvalidParameterError, RouteNotFoundError) as error:
                refused.append((pending, error))
        return refused

    def choose(self, queue: Target, shard_key: str | None) -> MessageQueue:
        """Returns the queue asked for, or the one whose turn it is.

        Raises:
            InvalidParameterError: There is no such queue.
            RouteNotFoundError: The topic has no writable queue.
        """
        queues = self.route.publish_queues if self.route is not None else ()
        if queue is not None:
            return explicit_queue(queues, self.name, queue)
        if not queues:
            raise RouteNotFoundError(f"topic {self.name} has no writable queue")
        if shard_key is not None:
            return queue_of_key(queues, shard_key)
        index = self._turn.order(len(queues))[0]
        self._turn.taken(index)
        return queues[index]

    def take_unroutable(self) -> list[Pending]:
        """Takes all that cannot be sent because there is no route."""
        taken = [*self.line, *(pending for pending, _, _ in self._unplaced)]
        self.line.clear()
        self._unplaced.clear()
        return taken

    def pinned_lanes(self) -> list[Lane]:
        """Returns idle lanes that have messages of their own."""
        ready: list[Lane] = []
        for queue, lane in list(self._pinned.items()):
            if not lane.waiting:
                del self._pinned[queue]
            elif not lane.busy:
                ready.append(lane)
        return ready

    def put_back(self, lane: Lane, batch: list[Pending]) -> None:
        """Puts messages of a lane back to the front, in order."""
        lane.waiting.extendleft(reversed(batch))
        self._pinned[lane.queue] = lane

    def free_lanes(self, *conditions: Callable[[str], bool]) -> list[Lane]:
        """Returns idle lanes in their turn, of the groups that are fittest.

        Args:
            conditions: On names of groups, the strictest first; one that no group meets is left
                out.
        """
        publish = self._publish
        lanes = [publish[index] for index in self._turn.order(len(publish))]
        for condition in conditions:
            fit = [lane for lane in lanes if condition(lane.queue.broker_name)]
            if fit:
                lanes = fit
                break
        return [lane for lane in lanes if not lane.busy]

    def turn_taken(self, lane: Lane) -> None:
        """Notes that a lane got a batch of the common line."""
        self._turn.taken(self._publish.index(lane))

    def has_elsewhere(self, lane: Lane) -> bool:
        """Whether another broker group could take what this lane cannot send."""
        name = lane.queue.broker_name
        return any(other.queue.broker_name != name for other in self._publish)

    def _pin(self, pending: Pending, queue: MessageQueue) -> None:
        lane = self.lane(queue)
        lane.waiting.append(pending)
        self._pinned[queue] = lane
