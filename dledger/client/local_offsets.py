"""Offsets of a broadcasting consumer: in a file of its own, for nobody shares its messages.

The file belongs to one consumer at a time, which locks another file beside it. A second consumer
of the same group on the same machine takes the next number, and after a restart each finds its
file again as long as they start in the same order; a `client_id` in the session's settings makes
the name certain.

    {"version": 1, "offsets": [{"topic": "t", "broker": "broker-a", "queue": 0, "offset": 42}, …]}

Durability: written to a new file which then takes the old one's place. Survives the process.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
from pathlib import Path
from typing import IO

import msgspec

from dledger.client.config import PushConsumerConfig
from dledger.client.offsets import Offsets
from dledger.client.session import ClientSession
from dledger.errors import ConfigError
from dledger.model import MessageQueue

_FILES_MAX = 256
_UNSAFE = re.compile(r"[^A-Za-z0-9_%.@-]")


class _Entry(msgspec.Struct):
    topic: str
    broker: str
    queue: int
    offset: int


class _File(msgspec.Struct):
    version: int
    offsets: list[_Entry]


class LocalOffsets(Offsets):
    """Keeps a group's offsets in a local file; asks the brokers only for bounds."""

    def __init__(self, session: ClientSession, directory: Path, name: str) -> None:
        """Takes the first free file of that name.

        Args:
            session: For questions to brokers.
            directory: Where the files are; created if missing.
            name: The group, and what tells this consumer from others on the machine.

        Raises:
            ConfigError: The directory or file cannot be used, or all files are taken.
        """
        super().__init__(session)
        self._offsets: dict[MessageQueue, int] = {}
        self._dirty = False
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._path, self._lock = _take(directory, _UNSAFE.sub("_", name))
            try:
                self._offsets = _read(self._path)
            except BaseException:
                self._lock.close()
                raise
        except OSError as error:
            raise ConfigError("offset_directory", str(directory), str(error)) from error

    @property
    def path(self) -> Path:
        """The file."""
        return self._path

    async def committed(self, group: str, queue: MessageQueue) -> int | None:
        """Returns the next offset this consumer will read; `None` if it never committed one."""
        return self._offsets.get(queue)

    async def commit(
        self, group: str, queue: MessageQueue, offset: int, *, timeout_s: float | None = None
    ) -> None:
        """Sets the next offset this consumer will read; `flush` writes it."""
        if self._offsets.get(queue) != offset:
            self._offsets[queue] = offset
            self._dirty = True

    async def flush(self) -> None:
        """Writes what was committed.

        Raises:
            ConfigError: The file cannot be written.
        """
        if not self._dirty:
            return
        entries = [_Entry(*queue, offset) for queue, offset in sorted(self._offsets.items())]
        partial = self._path.with_suffix(".partial")
        try:
            partial.write_bytes(msgspec.json.encode(_File(1, entries)))
            os.replace(partial, self._path)
        except OSError as error:
            raise ConfigError("offset_directory", str(self._path), str(error)) from error
        self._dirty = False

    def close(self) -> None:
        """Leaves the file to the next one."""
        self._lock.close()


def open_local_offsets(
    session: ClientSession, group: str, config: PushConsumerConfig
) -> LocalOffsets:
    """Returns the offsets of a broadcasting consumer as its settings say.

    Raises:
        ConfigError: The directory or file cannot be used.
    """
    given = config.offset_directory
    directory = Path(given) if given else Path.home() / ".dledger" / "offsets"
    client_id = config.session.client_id
    return LocalOffsets(session, directory, f"{client_id}@{group}" if client_id else group)


def _take(directory: Path, name: str) -> tuple[Path, IO[bytes]]:
    for number in range(1, _FILES_MAX + 1):
        stem = name if number == 1 else f"{name}.{number}"
        lock = (directory / f"{stem}.lock").open("ab")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.close()
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            continue
        return directory / f"{stem}.json", lock
    raise ConfigError("offset_directory", str(directory), f"{_FILES_MAX} files of {name} are taken")


def _read(path: Path) -> dict[MessageQueue, int]:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return {}
    try:
        content = msgspec.json.decode(data, type=_File)
    except (msgspec.DecodeError, json.JSONDecodeError) as error:
        rule = f"is not an offset file, move it away: {error}"
        raise ConfigError("offset_directory", str(path), rule) from error
    if content.version != 1:
        raise ConfigError("offset_directory", str(path), f"is of version {content.version}")
    return {
        MessageQueue(entry.topic, entry.broker, entry.queue): entry.offset
        for entry in content.offsets
    }
