"""Shares a group's queues out among its members: each comes to the same result by itself."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from functools import partial

from dledger.allocation import difference, strategy
from dledger.client.config import PushConsumerConfig
from dledger.client.held_queues import HeldQueues
from dledger.client.retry import backoff_s
from dledger.client.session import ClientSession
from dledger.client.tasks import side_by_side
from dledger.codes import RequestCode
from dledger.errors import BrokerResponseError, DLedgerError, RouteNotFoundError
from dledger.model import MessageModel, MessageQueue
from dledger.remoting.bodies import decode_consumer_ids
from dledger.remoting.headers import GetConsumerListHeader

logger = logging.getLogger(__name__)

_UNBALANCED_S = 1.0
_RETRY_TOPIC_MIN_S = 0.25


class Rebalance:
    """Has a member hold its share of its topics' queues. One loop."""

    def __init__(
        self,
        session: ClientSession,
        group: str,
        topics: Iterable[str],
        config: PushConsumerConfig,
        message_model: MessageModel,
        held: HeldQueues,
        *,
        retry_topic: str,
        unbalanced: asyncio.Event,
    ) -> None:
        """Does nothing before `run`.

        Args:
            session: Speaks with nameservers and brokers.
            group: The consumer group.
            topics: To share out.
            config: Strategy and intervals.
            message_model: If broadcasting, every member holds all queues.
            held: The queues held, which this gives and takes.
            retry_topic: The group's, which may come into being late; empty if it reads none.
            unbalanced: Set whenever the share may have changed.
        """
        self._session = session
        self._group = group
        self._topics = frozenset(topics)
        self._config = config
        self._message_model = message_model
        self._held = held
        self._retry_topic = retry_topic
        self._unbalanced = unbalanced
        self._balanced_once = asyncio.Event()
        # Broker groups of a topic when it was new to us.
        self._first_groups: dict[str, set[str]] = {}
        self._allocate = strategy(
            config.strategy,
            virtual_nodes=config.strategy_virtual_nodes,
            rooms=config.strategy_rooms,
            configured=config.strategy_queues,
        )

    async def wait_balanced(self, timeout_s: float) -> bool:
        """Waits for the first share-out; `False` after the timeout."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._balanced_once.wait()
        except TimeoutError:
            return False
        return True

    def route_changed(self, topic: str) -> None:
        """Shares out again soon if the topic is one of ours."""
        if topic in self._topics:
            self._unbalanced.set()

    async def run(self) -> None:
        """Shares out at its interval and whenever the share may have changed, until cancelled."""
        retry_misses = 0
        while True:
            self._unbalanced.clear()
            ready = True
            for topic in sorted(self._topics):
                try:
                    done = await self._rebalance(topic)
                except DLedgerError as error:
                    logger.info("rebalance failed topic=%s error=%s", topic, error)
                    done = False
                if topic == self._retry_topic:
                    retry_misses = 0 if done else retry_misses + 1
                else:
                    ready &= done
            if ready:
                self._balanced_once.set()
            pause = self._config.rebalance_interval_s
            if not ready:
                pause = min(pause, _UNBALANCED_S)
            elif retry_misses:
                # It comes into being with the group, a moment after its first member, or never.
                pause = min(pause, backoff_s(retry_misses, _RETRY_TOPIC_MIN_S, pause))
            try:
                async with asyncio.timeout(pause):
                    await self._unbalanced.wait()
            except TimeoutError:
                pass

    async def _rebalance(self, topic: str) -> bool:
        """Takes and gives up queues of one topic; returns whether all is as it should be."""
        try:
            route = await self._session.route(topic)
        except RouteNotFoundError:
            return False  # it may come; asked again soon
        names = sorted({queue.broker_name for queue in route.subscribe_queues})
        if not names:
            self._session.refresh_soon(topic)
            return False
        self._first_groups.setdefault(topic, {*names, *route.groups})
        wanted: Sequence[MessageQueue] = route.subscribe_queues
        members = [self._session.client_id]
        if self._message_model is MessageModel.CLUSTERING:
            members = await self._members(names[0])
            if self._session.client_id not in members:
                # The leader does not know us (yet), so no one else reckons with us either.
                await self._session.heartbeat_now()
                members = await self._members(names[0])
            wanted = self._allocate(route.subscribe_queues, members, self._session.client_id)
        held = [queue for queue in self._held.windows if queue.topic == topic]
        change = difference(held, wanted)
        await self._held.give_up(change.revoked)
        complete = self._session.client_id in members
        takeable = await self._held.lockable(change.added)
        complete = complete and len(takeable) == len(change.added)
        results = await side_by_side(
            [
                partial(self._held.take_over, queue, is_ours=self._is_ours(queue))
                for queue in takeable
            ]
        )
        for queue, error in zip(takeable, results, strict=True):
            if error is not None:
                logger.info("queue not taken yet queue=%s error=%s", queue, error)
                complete = False
        if change.revoked or change.added:
            logger.info(
                "rebalanced group=%s topic=%s members=%d taken=%s given_up=%s",
                self._group,
                topic,
                len(members),
                [tuple(queue[1:]) for queue in takeable],
                [tuple(queue[1:]) for queue in change.revoked],
            )
        return complete

    def _is_ours(self, queue: MessageQueue) -> bool:
        # A retry topic holds what the group has begun already; and a broker group that joins the
        # topic while we run has nothing that is older than our being here.
        return queue.topic == self._retry_topic or (
            queue.broker_name not in self._first_groups[queue.topic]
        )

    async def _members(self, broker_name: str) -> list[str]:
        try:
            response = await self._session.call_leader(
                broker_name,
                RequestCode.GET_CONSUMER_LIST_BY_GROUP,
                GetConsumerListHeader(consumer_group=self._group),
            )
        except BrokerResponseError as error:
            logger.debug("no members group=%s error=%s", self._group, error)
            return []
        return decode_consumer_ids(response.body)
