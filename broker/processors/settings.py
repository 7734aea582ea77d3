"""Settings: 25 changes some while the broker runs, 26 shows all."""

from __future__ import annotations

import logging

from broker.context import BrokerContext
from broker.feature_commands import encode_feature
from broker.live_settings import LiveSettings, PutSettings, Scope, parse_properties
from dledger.config import flatten_config
from dledger.errors import InvalidParameterError
from dledger.remoting.bodies import DataVersion, encode_data_version
from dledger.remoting.commands import Command
from dledger.remoting.server import Connection

logger = logging.getLogger(__name__)

BODY_BYTES_MAX = 64 * 1024


class SettingsProcessor:
    """Shows and changes how this replica is set up."""

    def __init__(self, context: BrokerContext, live: LiveSettings) -> None:
        self._context = context
        self._live = live

    def show(self, connection: Connection, command: Command) -> None:
        """26: the settings as they hold now, as properties text."""
        lines = sorted(f"{name}={value}" for name, value in flatten_config(self._context.config))
        text = "\n".join([*lines, ""])
        version = encode_data_version(DataVersion()).decode()
        connection.reply(command, 0, {"version": version}, body=text.encode())

    async def update(self, connection: Connection, command: Command) -> None:
        """25: changes settings, given as properties text.

        Raises:
            InvalidParameterError: One cannot be changed; nothing was.
            NotLeaderError: They are the group's, and this replica does not lead.

        Durability: settings of the group are committed on a majority and hold here when
        answered; those of a replica last until it stops.
        """
        if len(command.body) > BODY_BYTES_MAX:
            raise InvalidParameterError(f"the settings exceed {BODY_BYTES_MAX} bytes")
        try:
            changes = parse_properties(bytes(command.body).decode())
        except UnicodeDecodeError as error:
            raise InvalidParameterError("the settings are not UTF-8 text") from error
        if self._live.check(changes) is Scope.GROUP:
            put = PutSettings(sorted(changes.items()))
            await self._context.raft.submit(encode_feature(put))
        else:
            self._live.set_here(changes)
            self._context.config = self._live.current()
            if "log_level" in changes:
                logging.getLogger().setLevel(self._context.config.log_level)
        logger.info(
            "settings changed: %s", " ".join(f"{name}={value}" for name, value in changes.items())
        )
        connection.reply(command)
