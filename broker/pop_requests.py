"""Pops while they are under way: what was asked for, and what a look at the queues has found."""

from __future__ import annotations

from typing import Final

from broker.pop_choice import Choice, Wish
from dledger.model import TopicConfig
from dledger.remoting.commands import Command
from dledger.remoting.server import Connection

ANY_QUEUE: Final = -1
# A part that only skips messages is worth an entry of its own from so many on.
SKIPPED_WORTH: Final = 512


class PopRequest:
    """One checked request: a pop, or (`is_question`) whether a pop would find something."""

    __slots__ = (
        "command",
        "connection",
        "count_max",
        "deadline_ms",
        "from_newest",
        "invisible_ms",
        "is_question",
        "queue_id",
        "signature",
        "topic",
        "wish",
    )

    def __init__(self, connection: Connection, command: Command, topic: TopicConfig) -> None:
        self.connection = connection
        self.command = command
        self.topic = topic
        self.queue_id = ANY_QUEUE
        self.wish = Wish("")
        self.count_max = 1
        self.invisible_ms = 0
        self.deadline_ms = 0
        self.from_newest = False
        self.is_question = False
        # Requests with the same signature find the same.
        self.signature: tuple[object, ...] = ()


class Look:
    """What a request has found in the queues it may see."""

    def __init__(self) -> None:
        self.found: list[tuple[int, Choice]] = []  # queue id, choice with a part
        self.count = 0
        self.rest = 0
        self.visible_ms: int | None = None
        self.busy = False


def is_worth(choice: Choice) -> bool:
    """Whether a choice without messages is worth an entry of its own."""
    part = choice.part
    return part is not None and (
        part.seen_cursor < 0 or bool(part.dropped) or choice.skipped >= SKIPPED_WORTH
    )
