"""Topics and consumer groups: looking them up, and creating them as replicated entries.

Whoever needs a topic that does not exist yet may ask for it many times before the first proposal
is applied: all who wait share that one proposal.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Generic, TypeVar

from broker import commands, names
from broker.config import BrokerConfig
from broker.context import RaftView
from broker.gate import WriteGate
from dledger.codes import Permission, ResponseCode
from dledger.errors import DLedgerError, FlowControlError, InvariantError, RequestError
from dledger.message import validate_group
from dledger.model import GroupConfig, TopicConfig
from store.state_store import StateStore

logger = logging.getLogger(__name__)

T = TypeVar("T", TopicConfig, GroupConfig)
Created = Callable[[T | None, DLedgerError | None], None]


class NotCreatedYetError(RequestError):
    """What a request needs could not be created in time. The request itself had no effect."""

    retryable = True
    response_code = ResponseCode.SERVICE_NOT_AVAILABLE


def definite_failure(error: DLedgerError | None, what: str) -> DLedgerError:
    """Returns the failure of a request whose topic or group was not created.

    Whether that will still come into being may be unknown; the request certainly had no effect.
    """
    if error is not None and error.definite:
        return error
    return NotCreatedYetError(f"{what} is not created yet: {error}; try again")


class _Creations(Generic[T]):
    """Proposals under way by name, and who waits for each."""

    def __init__(self) -> None:
        self.waiting: dict[str, list[Created[T]]] = {}

    def join(self, name: str, callback: Created[T]) -> bool:
        """Adds a callback; returns whether the proposal is still to be made."""
        waiting = self.waiting.get(name)
        if waiting is not None:
            waiting.append(callback)
            return False
        self.waiting[name] = [callback]
        return True

    def finish(self, name: str, made: T | None, error: DLedgerError | None) -> None:
        """Tells everybody who waits."""
        for callback in self.waiting.pop(name, ()):
            callback(made, error)


class Catalog:
    """The broker's view of topics and groups."""

    def __init__(
        self,
        config: Callable[[], BrokerConfig],
        store: StateStore,
        raft: RaftView,
        gate: WriteGate,
    ) -> None:
        """Takes its parts; `config` returns the settings as they hold now."""
        self._read_config = config
        self._store = store
        self._raft = raft
        self._gate = gate
        self._topics: _Creations[TopicConfig] = _Creations()
        self._groups: _Creations[GroupConfig] = _Creations()

    @property
    def _config(self) -> BrokerConfig:
        return self._read_config()

    def system_topics(self) -> list[TopicConfig]:
        """Returns the topics that every broker group has."""
        config = self._config
        return names.system_topics(
            cluster_name=config.cluster_name,
            broker_name=config.broker_name,
            template_queue_count=config.default_queue_count,
            auto_create=config.auto_create_topics,
        )

    def template(self, name: str) -> TopicConfig | None:
        """Returns the topic after whose model sends may create others, None if they may not."""
        if not self._config.auto_create_topics:
            return None
        topic = self._store.topic(name)
        if topic is None:
            # The first leader has not stored the system topics yet.
            topic = next((t for t in self.system_topics() if t.name == name), None)
        if topic is None or not topic.permission & Permission.INHERIT:
            return None
        return topic

    def ensure_topic(self, config: TopicConfig, callback: Created[TopicConfig]) -> None:
        """Creates a topic unless it exists; the callback gets the topic as it is.

        Raises:
            DLedgerError: Refused at once; the callback is not called.

        Durability: when called back without an error, the topic is committed and applied here.
        """
        existing = self._store.topic(config.name)
        if existing is not None:
            callback(existing, None)
            return
        self._gate.check()
        if len(self._store.topics) >= self._config.limits.topics_max:
            raise FlowControlError(f"limits.topics_max = {self._config.limits.topics_max}")
        if self._topics.join(config.name, callback):
            command = commands.encode_put_topic(config, only_create=True)
            self._propose(command, config.name, self._topics, TopicConfig)

    def may_create_group(self, name: str) -> bool:
        """Tells whether a client that names a group brings it into being."""
        return self._config.auto_create_groups or names.is_system_group(name)

    def ensure_group(self, name: str, callback: Created[GroupConfig]) -> None:
        """Creates a consumer group unless it exists; the callback gets the group as it is.

        Raises:
            DLedgerError: Refused at once; the callback is not called.

        Durability: as `ensure_topic`.
        """
        existing = self._store.group(name)
        if existing is not None:
            callback(existing, None)
            return
        validate_group(name)
        self._gate.check()
        if len(self._store.groups) >= self._config.limits.groups_max:
            raise FlowControlError(f"limits.groups_max = {self._config.limits.groups_max}")
        if self._groups.join(name, callback):
            command = commands.encode_put_group(GroupConfig(name=name), only_create=True)
            self._propose(command, name, self._groups, GroupConfig)

    def ensure_group_soon(self, name: str) -> None:
        """Creates a group in the background if this replica leads; otherwise the leader will.

        Clients name their group again and again, so that a failure needs no retry here.
        """
        if name in self._groups.waiting or not self._raft.is_serving:
            return
        try:
            self.ensure_group(name, _report("group", name))
        except DLedgerError as error:
            logger.debug("group not created: group=%s reason=%s", name, error)

    def ensure_topic_soon(self, config: TopicConfig) -> None:
        """Creates a topic in the background if this replica leads."""
        if config.name in self._topics.waiting or not self._raft.is_serving:
            return
        try:
            self.ensure_topic(config, _report("topic", config.name))
        except DLedgerError as error:
            logger.debug("topic not created: topic=%s reason=%s", config.name, error)

    def _propose(self, command: bytes, name: str, creations: _Creations[T], kind: type[T]) -> None:
        def done(result: object, error: DLedgerError | None) -> None:
            if error is not None:
                creations.finish(name, None, error)
            elif isinstance(result, kind):
                creations.finish(name, result, None)
            else:
                raise InvariantError(f"creating {name!r} returned {result!r}")

        try:
            self._raft.propose(command, done)
        except DLedgerError as error:
            creations.finish(name, None, error)


def _report(what: str, name: str) -> Callable[[object, DLedgerError | None], None]:
    def done(made: object, error: DLedgerError | None) -> None:
        if error is None:
            logger.info("%s created: name=%s", what, name)
        else:
            logger.warning("%s not created: name=%s reason=%s", what, name, error)

    return done
