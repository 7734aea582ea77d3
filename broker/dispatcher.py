"""Decides who handles a request: this replica, or the leader; and turns errors into answers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from enum import Enum
from typing import NamedTuple

from broker.context import FATAL_ERRORS
from broker.forwarding import Forwarder
from broker.tasks import Tasks
from dledger.codes import EXT_OUTCOME, OUTCOME_REFUSED, ResponseCode
from dledger.errors import (
    DLedgerError,
    LeadershipLostError,
    NotLeaderError,
    RequestError,
)
from dledger.remoting.commands import Command
from dledger.remoting.server import Connection

logger = logging.getLogger(__name__)

Handle = Callable[[Connection, Command], None]
HandleAsync = Callable[[Connection, Command], Awaitable[None]]


class Place(Enum):
    """Where a request is answered."""

    HERE = "any replica"
    LEADER = "the serving leader only"
    HERE_THEN_LEADER = "any replica; what it does not find, the leader may have"


class Route(NamedTuple):
    """How requests of one code are handled."""

    place: Place
    handle: Handle


class Dispatcher:
    """Hands requests to processors by their code."""

    def __init__(
        self,
        *,
        is_serving: Callable[[], bool],
        tasks: Tasks,
        on_fatal: Callable[[BaseException], None],
    ) -> None:
        self._is_serving = is_serving
        self._tasks = tasks
        self._on_fatal = on_fatal
        self._routes: Mapping[int, Route] = {}
        self._forwarder: Forwarder | None = None

    def connect(self, routes: Mapping[int, Route], forwarder: Forwarder) -> None:
        """Completes the dispatcher; it and its parts need each other."""
        self._routes = routes
        self._forwarder = forwarder

    def handle(self, connection: Connection, command: Command) -> None:
        """Answers a request, now or later."""
        route = self._routes.get(command.code)
        if route is None:
            remark = f" request type {command.code} not supported"
            code = ResponseCode.REQUEST_CODE_NOT_SUPPORTED
            connection.reply(command, code, {EXT_OUTCOME: OUTCOME_REFUSED}, remark)
            return
        if route.place is Place.LEADER and not self._is_serving():
            self.redirect(connection, command)
            return
        try:
            route.handle(connection, command)
        except Exception as error:
            self._fail(connection, command, error, route.place)

    def redirect(self, connection: Connection, command: Command) -> None:
        """Hands a request that had no effect here to the leader, or refuses it."""
        if self._forwarder is None:
            connection.reply_error(command, NotLeaderError())
            return
        try:
            self._forwarder.forward(connection, command)
        except DLedgerError as error:
            connection.reply_error(command, error)

    def background(self, handle: HandleAsync) -> Handle:
        """Returns a handler that runs a coroutine for each request."""

        async def run(connection: Connection, command: Command) -> None:
            try:
                await handle(connection, command)
            except asyncio.CancelledError:
                error = LeadershipLostError("the broker stops; the outcome is unknown")
                connection.reply_error(command, error)
                raise
            except Exception as error:
                self._fail(connection, command, error, Place.LEADER)

        def start(connection: Connection, command: Command) -> None:
            name = f"request-{command.code}-{connection.id}-{command.opaque}"
            self._tasks.spawn(run(connection, command), name)

        return start

    def _fail(
        self, connection: Connection, command: Command, error: Exception, place: Place
    ) -> None:
        if command.answered:
            logger.error("request failed after its answer: code=%d", command.code, exc_info=error)
        elif isinstance(error, NotLeaderError) or (
            place is Place.HERE_THEN_LEADER
            and isinstance(error, RequestError)
            and not self._is_serving()
        ):
            self.redirect(connection, command)
        else:
            if not isinstance(error, DLedgerError):
                logger.error("request failed: code=%d", command.code, exc_info=error)
            connection.reply_error(command, error)
        if isinstance(error, FATAL_ERRORS):
            self._on_fatal(error)
