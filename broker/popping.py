"""Puts the parts of popping together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from broker.catalog import Catalog
from broker.context import BrokerContext
from broker.messages import MessageReader
from broker.offset_resets import PendingResets
from broker.pop_acks import PopAcks
from broker.pop_dead_letters import PopDeadLetters
from broker.processors.pop import PopProcessor
from broker.processors.pop_acks import PopAckProcessor
from dledger.remoting.commands import Command
from dledger.remoting.server import Connection


@dataclass(frozen=True, slots=True)
class Popping:
    """What a broker needs to be popped from."""

    pops: PopProcessor
    acks: PopAckProcessor
    dead_letters: PopDeadLetters


def make_popping(
    context: BrokerContext,
    catalog: Catalog,
    reader: MessageReader,
    resets: PendingResets,
    *,
    store_host: bytes,
    redirect: Callable[[Connection, Command], None],
) -> Popping:
    """Returns the parts; arguments as those of `PopProcessor` and `PopDeadLetters`."""
    acks = PopAcks(context.raft, context.gate)
    pops = PopProcessor(context, catalog, reader, resets, redirect=redirect)
    dead_letters = pops.dead_letters = PopDeadLetters(
        context, catalog, acks, store_host=store_host, on_buried=pops.visibility_changed
    )
    processor = PopAckProcessor(
        context,
        acks,
        dead_letters,
        on_acknowledged=pops.acknowledged,
        on_visibility=pops.visibility_changed,
        redirect=redirect,
    )
    return Popping(pops, processor, dead_letters)
