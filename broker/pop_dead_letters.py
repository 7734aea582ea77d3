"""Puts messages that were popped too often among the dead letters of their group.

Storing the dead letter and ending the message are one log entry. What is on its way is remembered:
it is neither buried twice nor acknowledged meanwhile. After an indefinite error that is until the
log is applied up to where it ended then: within one term an entry is either before that or nowhere.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec

from broker import names, retries
from broker.catalog import Catalog
from broker.context import FATAL_ERRORS, BrokerContext
from broker.copies import copy_of
from broker.pop_acks import Place, PopAcks
from broker.pop_choice import Dead
from broker.pop_state import Ack, ended_rider, pack_bits
from dledger.errors import DLedgerError, MessageRejectedError
from dledger.message import decode_stored, encode_properties, stored_properties
from dledger.model import GroupConfig, TopicConfig

logger = logging.getLogger(__name__)

REASON = "not acknowledged in time"
UNDER_WAY_MAX = 4096


class PopDeadLetters:
    """Buries messages. Satisfies `RaftListener`. Loop only."""

    def __init__(
        self,
        context: BrokerContext,
        catalog: Catalog,
        acks: PopAcks,
        *,
        store_host: bytes,
        on_buried: Callable[[str], None],
    ) -> None:
        """Prepares burying.

        Args:
            context: The broker's parts.
            catalog: Topics and groups.
            acks: Acknowledgements under way.
            store_host: Packed address in message ids.
            on_buried: Called with the topic when one of its messages is out of the way.
        """
        self._context = context
        self._catalog = catalog
        self._acks = acks
        self._store_host = store_host
        self._on_buried = on_buried
        # None until there is an answer; the log index that decides after an indefinite one.
        self._under_way: dict[Place, int | None] = {}

    def is_under_way(self, place: Place) -> bool:
        """Whether a message is on its way to the dead letters."""
        if place not in self._under_way:
            return False
        decided_by = self._under_way[place]
        if decided_by is None or decided_by > self._context.raft.applied_index:
            return True
        # If it was stored, the message is over and nobody asks for it again.
        del self._under_way[place]
        return False

    def on_serving(self, term: int) -> None:
        """Begins anew: what earlier terms left is applied or gone."""
        self._under_way = {}

    def on_stopped_serving(self) -> None:
        """Does nothing."""

    def on_leader_changed(self, leader_id: str | None, term: int) -> None:
        """Does nothing."""

    def bury(self, group: str, topic: str, queue_id: int, dead: Dead) -> None:
        """Has a message buried, unless that or its acknowledgement is under way.

        What goes wrong is tried again when somebody pops.
        """
        place = (group, topic, queue_id, dead.offset)
        if self.is_under_way(place) or self._acks.is_under_way(place):
            return
        config = self._context.store.group(group)
        if config is None or not self._has_room():
            return
        under_way = self._under_way
        under_way[place] = None

        def settled(error: DLedgerError | None) -> None:
            if error is None or error.definite:
                under_way.pop(place, None)
            else:
                under_way[place] = self._context.log.last_index
            if error is None:
                self._on_buried(topic)
            else:
                logger.warning("dead letter not stored: place=%s reason=%s", place, error)

        def made(letters: TopicConfig | None, error: DLedgerError | None) -> None:
            if letters is None:
                under_way.pop(place, None)  # the letter itself was never on its way
                logger.warning("dead letters not created: group=%s reason=%s", group, error)
                return
            try:
                self._store(config, letters, topic, queue_id, dead, settled)
            except FATAL_ERRORS:
                raise
            except DLedgerError as refused:
                settled(refused)

        try:
            self._catalog.ensure_topic(names.dead_letter_topic_config(group), made)
        except FATAL_ERRORS:
            raise
        except DLedgerError as error:
            settled(error)

    def _has_room(self) -> bool:
        if len(self._under_way) >= UNDER_WAY_MAX:
            for place in list(self._under_way):
                self.is_under_way(place)  # forgets it if it is decided
        return len(self._under_way) < UNDER_WAY_MAX

    def _store(
        self,
        group: GroupConfig,
        letters: TopicConfig,
        topic: str,
        queue_id: int,
        dead: Dead,
        settled: Callable[[DLedgerError | None], None],
    ) -> None:
        ack = Ack(
            group.name, topic, queue_id, dead.key, pack_bits(1 << dead.offset - dead.key.start)
        )
        stored = bytes(self._context.log.read(dead.physical_offset, dead.size_bytes))
        message = decode_stored(stored, decompress=False)
        failed = message.reconsume_times + dead.deliveries - 1
        back = retries.send_back(
            msgspec.structs.replace(message, reconsume_times=failed),
            group,
            delay_level=-1,
            reconsume_max=None,
            reason=REASON,
            now_ms=self._context.clock.wall_ms(),
        )
        copy = copy_of(
            message,
            topic=letters.name,
            queue_id=0,
            reconsume_times=back.reconsume_times,
            properties=back.properties,
            raw=_properties_string(back.properties, stored),
            store_host=self._store_host,
        )
        self._context.appender.append(
            letters,
            0,
            [copy],
            lambda _first, _offsets, error: settled(error),
            rider=ended_rider(ack),
        )


def _properties_string(properties: dict[str, str], stored: bytes) -> bytes:
    """Returns what a dead letter carries; without the story of its death if that leaves no room."""
    try:
        return encode_properties(properties)
    except MessageRejectedError:
        return stored_properties(stored)
