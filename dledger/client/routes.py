"""What this client knows of topics and broker groups: pure, fed by the session.

A route that a nameserver no longer gives (it restarted, or the group has no leader for a moment)
stays in use until another one comes: brokers have the last word on what exists.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from dledger.client.leaders import LeaderBook
from dledger.codes import Permission
from dledger.errors import RemoteProtocolError
from dledger.model import MessageQueue
from dledger.remoting.bodies import TopicRouteData


@dataclass(frozen=True, slots=True)
class TopicRoute:
    """Where a topic's queues are; both lists sorted, but for an order topic's first one.

    Attributes:
        publish_queues: Queues that take messages. Those of an order topic are what was configured,
            in that order, whether or not their groups are up: so keys never move.
        subscribe_queues: Queues that can be read.
        groups: Broker name to replica addresses by broker id (0: the leader, if there is one).
        guessed: The topic does not exist yet; these are the queues its first send will create.
    """

    topic: str
    publish_queues: tuple[MessageQueue, ...]
    subscribe_queues: tuple[MessageQueue, ...]
    groups: dict[str, dict[int, str]]
    guessed: bool = False


def topic_route(
    topic: str, data: TopicRouteData, *, queues_max: int | None = None, guessed: bool = False
) -> TopicRoute:
    """Returns the route in a nameserver's answer.

    Args:
        topic: The topic it is for; that of the answer may be the template for new topics.
        data: The answer.
        queues_max: Take at most that many queues of each broker.
        guessed: See `TopicRoute`.
    """
    groups = {data.broker_name: dict(data.addresses) for data in data.broker_datas}
    publish: set[MessageQueue] = set()
    readable: set[MessageQueue] = set()
    for entry in data.queue_datas:
        name = entry.broker_name
        if not groups.get(name):
            continue
        for count, bit, queues in (
            (entry.write_queue_count, Permission.WRITE, publish),
            (entry.read_queue_count, Permission.READ, readable),
        ):
            if entry.permission & bit:
                count = count if queues_max is None else min(count, queues_max)
                queues.update(MessageQueue(topic, name, index) for index in range(count))
    ordered = [
        MessageQueue(topic, name, index)
        for name, count in parse_order(data.order_topic_conf or "").items()
        for index in range(count)
    ]
    chosen = ordered or sorted(publish)
    return TopicRoute(topic, tuple(chosen), tuple(sorted(readable)), groups, guessed)


def parse_order(text: str) -> dict[str, int]:
    """Returns queue counts by broker group, from `broker-a:4;broker-b:4` as nameservers keep it.

    Raises:
        RemoteProtocolError: It is not of that form. Guessing would break the order it is for.
    """
    counts: dict[str, int] = {}
    for part in filter(None, text.split(";")):
        name, _, count = part.partition(":")
        if not name or not count.isascii() or not count.isdigit() or len(count) > 5:
            raise RemoteProtocolError(
                f"an order configuration is GROUP:QUEUES;..., it cannot hold {part[:100]!r}"
            )
        counts[name] = int(count)
    return counts


class RouteCache:
    """Routes by topic and leader knowledge by broker name. At most `TOPICS_MAX` topics."""

    TOPICS_MAX = 10_000

    def __init__(self) -> None:
        self._routes: dict[str, TopicRoute] = {}
        self._books: dict[str, LeaderBook] = {}

    def __repr__(self) -> str:
        return f"<RouteCache topics={len(self._routes)} groups={sorted(self._books)}>"

    @property
    def topics(self) -> list[str]:
        """Topics with a route, sorted."""
        return sorted(self._routes)

    def route(self, topic: str) -> TopicRoute | None:
        """Returns the newest route of a topic, if one came."""
        return self._routes.get(topic)

    def update(self, route: TopicRoute, now_ms: int) -> bool:
        """Takes a route; returns whether the topic's queues or addresses changed."""
        for name, addresses in route.groups.items():
            self.note_group(name, addresses, now_ms)
        before = self._routes.pop(route.topic, None)
        if len(self._routes) >= self.TOPICS_MAX:
            del self._routes[next(iter(self._routes))]
        self._routes[route.topic] = route
        return before != route

    def note_group(self, broker_name: str, addresses: dict[int, str], now_ms: int) -> None:
        """Takes the addresses of a broker group, learned from whatever answer."""
        if addresses:
            self.book(broker_name).registered(
                addresses.get(0), [addresses[number] for number in sorted(addresses)], now_ms
            )

    def forget(self, topic: str) -> None:
        """Drops a topic, for instance because it was deleted."""
        self._routes.pop(topic, None)

    def book(self, broker_name: str) -> LeaderBook:
        """Returns what is known about who leads a broker group."""
        book = self._books.get(broker_name)
        if book is None:
            book = self._books[broker_name] = LeaderBook(broker_name)
        return book

    def broker_names(self, topics: Iterable[str] | None = None) -> list[str]:
        """Returns the broker groups of these topics (of all), sorted."""
        wanted = self._routes if topics is None else topics
        routes = [self._routes[topic] for topic in wanted if topic in self._routes]
        return sorted({name for route in routes for name in route.groups})
