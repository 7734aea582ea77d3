"""One topic as a producer sees it: its lanes, and what waits for them. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import islice

from dledger.client.batching import Lane, Pending, put_back, take_batch, total_messages
from dledger.client.routes import TopicRoute
from dledger.client.selection import PublishList, RoundRobin, queue_of_key
from dledger.errors import DLedgerError, InvalidParameterError, RouteNotFoundError
from dledger.model import MessageQueue

Target = MessageQueue | int | None
_SPREAD_MIN = 32


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
        self._batched = 0  # messages in it beyond one an item: those of user-made batches
        self._unplaced: deque[tuple[Pending, Target, str | None]] = deque()
        self._lanes: dict[MessageQueue, Lane] = {}
        self._publish = PublishList(name)
        self._publish_lanes: list[Lane] = []
        self._ready: dict[MessageQueue, Lane] = {}  # idle lanes that have messages of their own
        self._turn = RoundRobin()

    def __repr__(self) -> str:
        return (
            f"<TopicLines {self.name} line={len(self.line)} unplaced={len(self._unplaced)} "
            f"lanes={len(self._lanes)}>"
        )

    @property
    def needs_route(self) -> bool:
        """Whether something waits that the route at hand gives no place to."""
        has_no_lane = bool(self.line) and not self._publish_lanes
        return self.route is None or bool(self._unplaced) or has_no_lane

    def use(self, route: TopicRoute) -> None:
        """Takes a (newer) route. Lanes of queues that are gone send what they hold, then idle."""
        self.route = route
        self._publish = PublishList(self.name, route.publish_queues)
        self._publish_lanes = [self.lane(queue) for queue in route.publish_queues]

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
            self._batched += pending.count - 1
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
        queues = self._publish.queues
        if queue is not None:
            return self._publish.explicit(queue)
        if not queues:
            raise RouteNotFoundError(f"topic {self.name} has no writable queue")
        if shard_key is not None:
            return queue_of_key(queues, shard_key)
        index = next(self._turn.order(len(queues)))
        self._turn.taken(index)
        return queues[index]

    def count_min(self, configured: int) -> int:
        """Returns the messages a batch should have before another lane gets one as well.

        A request costs the replicas of a group together about as much as 150 small messages; but
        another group's replicas have processors of their own.
        """
        several = len(self._publish.broker_names) > 1
        return min(configured, _SPREAD_MIN) if several else configured

    @property
    def waiting(self) -> int:
        """Messages in the common line; those of user-made batches count one by one."""
        return len(self.line) + self._batched

    def take_batch(self, *, count_max: int, bytes_max: int) -> list[Pending]:
        """Takes the next of the common line that may leave together.

        Args:
            count_max: Messages. User-made batches are not cut: one that the even share ends in
                is taken, or those behind it would wait for a lane in vain.
            bytes_max: Of the batch body.
        """
        if not self._batched:
            return take_batch(self.line, count_max=count_max, bytes_max=bytes_max)
        first = self.line[0].count
        batch = take_batch(self.line, count_max=-(-count_max // first) * first, bytes_max=bytes_max)
        self._batched -= total_messages(batch) - len(batch)
        return batch

    def return_batch(self, batch: list[Pending]) -> None:
        """Puts messages back to the front of the common line, to be tried again."""
        put_back(self.line, batch)
        self._batched += total_messages(batch) - len(batch)

    def take_unroutable(self) -> list[Pending]:
        """Takes all that cannot be sent because there is no route."""
        taken = [*self.line, *(pending for pending, _, _ in self._unplaced)]
        self.line.clear()
        self._batched = 0
        self._unplaced.clear()
        return taken

    def take_ready(self) -> list[Lane]:
        """Takes the idle lanes that have messages of their own, for the caller to start."""
        ready = list(self._ready.values())
        self._ready.clear()
        return ready

    def put_back(self, lane: Lane, batch: list[Pending]) -> None:
        """Puts messages of a busy lane back to the front, in order."""
        lane.waiting.extendleft(reversed(batch))

    def settled(self, lane: Lane) -> None:
        """Notes that a busy lane is idle."""
        lane.busy = False
        if lane.waiting:
            self._ready[lane.queue] = lane

    def free_lanes(self, count_max: int, *conditions: Callable[[str], bool]) -> list[Lane]:
        """Returns so many idle lanes in their turn, of the groups that are fittest.

        It looks at no more lanes than it has to: a topic may have ten thousand.

        Args:
            count_max: Fewer if there are fewer.
            conditions: On names of groups, the strictest first; one that no group meets is left
                out.
        """
        names = self._publish.broker_names
        for condition in conditions:
            fit = tuple([name for name in names if condition(name)])
            if fit:
                names = fit
                break
        lanes = self._publish_lanes
        is_any = len(names) == len(self._publish.broker_names)
        idle = (
            lane
            for index in self._turn.order(len(lanes))
            if not (lane := lanes[index]).busy and (is_any or lane.queue.broker_name in names)
        )
        return list(islice(idle, count_max))

    def turn_taken(self, lane: Lane) -> None:
        """Notes that a lane got a batch of the common line."""
        place = self._publish.place(lane.queue)
        if place is not None:
            self._turn.taken(place)

    def has_elsewhere(self, lane: Lane) -> bool:
        """Whether another broker group could take what this lane cannot send."""
        return any(name != lane.queue.broker_name for name in self._publish.broker_names)

    def _pin(self, pending: Pending, queue: MessageQueue) -> None:
        lane = self.lane(queue)
        lane.waiting.append(pending)
        if not lane.busy:
            self._ready[queue] = lane
