"""Timers: stored messages that wait for their time, ordered by it. Tables `timers`, `timer_keys`.

    timers       delivery time ms u64 | physical offset u64  -> the waiting message, as stored
    timer_keys   hash of the unique key, 16 bytes | the 16 bytes above  -> nothing

The message itself is in the table, not only its place in the log: a message may wait for longer
than the log is retained, and what it costs must not depend on how long it waits. The physical
offset makes the key unique and keeps messages that are due at the same time in the order in which
they were stored. The second table finds a timer by the message's unique key, to recall it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from struct import Struct
from typing import Final, NamedTuple

from store.lmdb_env import LmdbEnvironment, WriteTransaction

TIMERS: Final = "timers"
TIMER_KEYS: Final = "timer_keys"
DATABASE_NAMES: Final = (TIMERS, TIMER_KEYS)

TIMER_KEY: Final = Struct(">QQ")
TIMER_KEY_BYTES: Final = TIMER_KEY.size
_HASH_BYTES: Final = 16
_FOUND_MAX: Final = 64  # timers of one unique key that are looked at

Buffer = bytes | bytearray | memoryview


class Timer(NamedTuple):
    """A message that waits.

    Attributes:
        key: Delivery time and physical offset, packed: its name in commands.
        stored: The waiting message as it lies in the log.
    """

    key: bytes
    stored: bytes

    @property
    def deliver_ms(self) -> int:
        """When it is due, in ms since the epoch."""
        return int(TIMER_KEY.unpack(self.key)[0])


def timer_key(deliver_ms: int, physical_offset: int) -> bytes:
    """Returns the name of a timer."""
    return TIMER_KEY.pack(deliver_ms, physical_offset)


def _unique_stem(unique_key: bytes) -> bytes:
    return hashlib.blake2b(unique_key, digest_size=_HASH_BYTES).digest()


class TimerChanges:
    """The timers' part of one write batch: collected first, executed in its transaction."""

    def __init__(self, environment: LmdbEnvironment) -> None:
        self._environment = environment
        self._added: dict[bytes, tuple[Buffer, bytes]] = {}
        self._removed: dict[bytes, bytes] = {}  # key -> unique key of the message
        self.bytes_estimate = 0

    def add(self, key: bytes, stored: Buffer, unique_key: bytes) -> None:
        """Adds a timer.

        Args:
            key: Its name.
            stored: The message. Not copied: must not change until the batch is committed.
            unique_key: Of the message, for recalling it.
        """
        self._added[key] = (stored, unique_key)
        # A message over a page's half gets pages of its own; two tables have pages to touch.
        self.bytes_estimate += 2 * len(stored) + 16_384

    def exists(self, key: bytes) -> bool:
        """Says whether a timer is pending as this batch has made it."""
        return key in self._added or (
            key not in self._removed and _get(self._environment, key) is not None
        )

    def remove(self, key: bytes, unique_key: bytes) -> None:
        """Removes a timer that exists."""
        if self._added.pop(key, None) is None:
            self._removed[key] = unique_key
            self.bytes_estimate += 16_384

    def stored(self, key: bytes) -> Buffer | None:
        """Returns the message of a pending timer, as this batch has made it."""
        added = self._added.get(key)
        if added is not None:
            return added[0]
        return None if key in self._removed else _get(self._environment, key)

    def execute(self, transaction: WriteTransaction) -> None:
        """Writes the changes; may be called again in a fresh transaction."""
        databases = self._environment.databases
        timers, unique = databases[TIMERS], databases[TIMER_KEYS]
        for key, unique_key in self._removed.items():
            transaction.delete(key, db=timers)
            transaction.delete(_unique_stem(unique_key) + key, db=unique)
        for key, (stored, unique_key) in sorted(self._added.items()):
            transaction.put(key, bytes(stored), db=timers)
            transaction.put(_unique_stem(unique_key) + key, b"", db=unique)


class TimerReader:
    """Reads the pending timers as committed. Made by `StateStore`."""

    def __init__(self, environment: LmdbEnvironment) -> None:
        self._environment = environment

    def count(self) -> int:
        """Returns how many timers are pending. Cost: constant."""
        with self._environment.read() as transaction:
            return int(transaction.stat(self._environment.databases[TIMERS])["entries"])

    def used_bytes(self) -> int:
        """Returns the room that pending timers take. Cost: constant."""
        with self._environment.read() as transaction:
            total = 0
            for name in DATABASE_NAMES:
                stat = transaction.stat(self._environment.databases[name])
                pages = stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
                total += pages * stat["psize"]
        return total

    def exists(self, key: bytes) -> bool:
        """Says whether a timer is pending."""
        return _get(self._environment, key) is not None

    def next_due_ms(self, skip: Collection[bytes] = ()) -> int | None:
        """Returns when the first timer that is not to be skipped is due, None if there is none."""
        with self._environment.read() as transaction:
            cursor = transaction.cursor(self._environment.databases[TIMERS])
            found = cursor.first()
            while found:
                key = cursor.key()
                if key not in skip:
                    return int(TIMER_KEY.unpack(key)[0])
                found = cursor.next()
        return None

    def due(
        self, now_ms: int, *, count_max: int, bytes_max: int, skip: Collection[bytes] = ()
    ) -> list[Timer]:
        """Returns timers whose time has come, in the order of their times.

        Args:
            now_ms: The present.
            count_max: At most so many.
            bytes_max: At most so many bytes of messages, but at least one message.
            skip: Names of timers to leave out.

        Cost: proportional to what is returned and skipped, whatever else is pending.
        """
        timers: list[Timer] = []
        size = 0
        with self._environment.read() as transaction:
            cursor = transaction.cursor(self._environment.databases[TIMERS])
            found = cursor.first()
            while found and len(timers) < count_max:
                key = cursor.key()
                if TIMER_KEY.unpack(key)[0] > now_ms:
                    break
                if key not in skip:
                    stored = bytes(cursor.value())
                    size += len(stored)
                    if timers and size > bytes_max:
                        break
                    timers.append(Timer(bytes(key), stored))
                found = cursor.next()
        return timers

    def find(self, unique_key: bytes) -> list[Timer]:
        """Returns the pending timers of a message by its unique key, at most 64.

        The key is compared by hash: the caller compares the messages.
        """
        stem = _unique_stem(unique_key)
        keys: list[bytes] = []
        with self._environment.read() as transaction:
            cursor = transaction.cursor(self._environment.databases[TIMER_KEYS])
            found = cursor.set_range(stem)
            while found and len(keys) < _FOUND_MAX and cursor.key().startswith(stem):
                keys.append(bytes(cursor.key()[_HASH_BYTES:]))
                found = cursor.next()
            database = self._environment.databases[TIMERS]
            held = [(key, transaction.get(key, db=database)) for key in keys]
        return [Timer(key, bytes(stored)) for key, stored in held if stored is not None]


def _get(environment: LmdbEnvironment, key: bytes) -> bytes | None:
    with environment.read() as transaction:
        value = transaction.get(key, db=environment.databases[TIMERS])
    return None if value is None else bytes(value)
