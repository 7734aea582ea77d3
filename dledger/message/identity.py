"""Hashes, checksums, host addresses and the two kinds of message id."""

from __future__ import annotations

import functools
import os
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from itertools import repeat
from typing import TYPE_CHECKING

from dledger.checksum import crc32
from dledger.clock import SystemClock
from dledger.errors import InvalidParameterError

if TYPE_CHECKING:
    from dledger.clock import Clock

_PORT = struct.Struct(">i")
_OFFSET = struct.Struct(">q")
_IPV4_IN_IPV6 = bytes(10) + b"\xff\xff"
_HEX = re.compile(r"[0-9A-Fa-f]+")


def java_hash(text: str) -> int:
    """Returns Java's `String.hashCode`: over UTF-16 units, as a signed 32-bit number."""
    value = 0
    for unit in memoryview(text.encode("utf-16-le", "surrogatepass")).cast("H"):
        value = (value * 31 + unit) & 0xFFFFFFFF
    return value - 0x100000000 if value & 0x80000000 else value


@functools.lru_cache(maxsize=4096)
def tag_hash(tags: str) -> int:
    """Returns the value that ConsumeQueue units and subscriptions compare; 0 for no tag."""
    return java_hash(tags) if tags else 0


def crc31(data: bytes | bytearray | memoryview) -> int:
    """Returns the CRC-32 of zlib without its top bit, as stored records carry it."""
    return crc32(data) & 0x7FFFFFFF


def pack_host(ip: str, port: int) -> bytes:
    """Returns the address and port as stored: 8 bytes for IPv4, 20 for IPv6.

    An IPv4 address mapped into IPv6 is packed as IPv4, which every client can read.

    Raises:
        InvalidParameterError: The address is not numeric or the port out of range.
    """
    if not 0 <= port <= 0xFFFF:
        raise InvalidParameterError(f"port {port} lies outside [0, 65535]")
    try:
        if ":" in ip:
            address = socket.inet_pton(socket.AF_INET6, ip.partition("%")[0])
            address = address.removeprefix(_IPV4_IN_IPV6)
        else:
            address = socket.inet_pton(socket.AF_INET, ip)
        return address + _PORT.pack(port)
    except (OSError, ValueError) as exc:
        raise InvalidParameterError(f"{ip!r} is not a numeric IP address") from exc


def unpack_host(host: bytes) -> tuple[str, int]:
    """Returns the address and port of 8 (IPv4) or 20 (IPv6) packed bytes.

    Raises:
        InvalidParameterError: Another length.
    """
    if len(host) not in (8, 20):
        raise InvalidParameterError(f"a packed host has 8 or 20 bytes, not {len(host)}")
    family = socket.AF_INET if len(host) == 8 else socket.AF_INET6
    return socket.inet_ntop(family, host[:-4]), _PORT.unpack_from(host, len(host) - 4)[0]


@functools.lru_cache(maxsize=4096)
def format_host(host: bytes) -> str:
    """Returns `ip:port`, with brackets around IPv6, of a packed host."""
    ip, port = unpack_host(host)
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"


def offset_message_id(host: bytes, physical_offset: int) -> str:
    """Returns the id made of a packed store host and a physical offset, in upper-case hex."""
    return (host + _OFFSET.pack(physical_offset)).hex().upper()


def offset_message_ids(host: bytes, physical_offsets: Sequence[int]) -> str:
    """Returns the ids of several messages as one text, joined by commas; at least one."""
    pack = struct.Struct(f">{len(host)}sq").pack
    packed = b"".join(map(pack, repeat(host), physical_offsets))
    return packed.hex(",", len(host) + _OFFSET.size).upper()


def parse_offset_message_id(text: str) -> tuple[str, int, int]:
    """Returns the IP address, port and physical offset of an offset message id.

    A unique key has the same shape, so success does not prove that the text is an offset id.

    Raises:
        InvalidParameterError: Not 32 or 56 hexadecimal digits.
    """
    if len(text) not in (32, 56) or _HEX.fullmatch(text) is None:
        raise InvalidParameterError(f"{text!r} is not a message id of 32 or 56 hexadecimal digits")
    raw = bytes.fromhex(text)
    ip, port = unpack_host(raw[:-8])
    return ip, port, _OFFSET.unpack_from(raw, len(raw) - 8)[0]


class UniqueKeyGenerator:
    """Makes the 32-digit upper-case ids that clients give their messages.

    The layout is RocketMQ's: IPv4 address, low 16 bits of the process id, 32 bits per process,
    milliseconds since the start of the local month, 16-bit counter. Tools derive the beginning of
    their search window from the milliseconds, so those are kept exact. Keys of one generator never
    repeat: time and counter only go up, even when the clock goes back, and the 32 bits are drawn
    anew with each month.

    Concurrency:
        Any thread. A forked process needs a generator of its own.
    """

    def __init__(
        self,
        clock: Clock | None = None,
        *,
        pid: int | None = None,
        ip: str | None = None,
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._now_ms = (clock or SystemClock()).wall_ms
        self._random_bytes = random_bytes
        address = pack_host(ip, 0)[:4] if ip is not None else random_bytes(4)
        process = (os.getpid() if pid is None else pid) & 0xFFFF
        self._identity = address + process.to_bytes(2, "big")
        self._lock = threading.Lock()
        self._last = 0  # milliseconds << 16 | counter of the newest key
        self._prefix = ""
        self._month_start_ms = 0
        self._month_stop_ms = 0

    def __call__(self) -> str:
        """Returns the next key."""
        now_ms = self._now_ms()
        with self._lock:
            value = self._last + 1
            if now_ms << 16 > value:
                value = now_ms << 16
            self._last = value
            if value >> 16 >= self._month_stop_ms:
                self._begin_month(value >> 16)
            value -= self._month_start_ms << 16
            return f"{self._prefix}{value & 0xFFFFFFFFFFFF:012X}"

    def take(self, count: int) -> list[str]:
        """Returns the next keys: those that so many calls would return at this moment.

        Args:
            count: How many; 0 or more.
        """
        now_ms = self._now_ms()
        with self._lock:
            first = max(self._last + 1, now_ms << 16)
            last = first + count - 1
            if last >> 16 == first >> 16 and last >> 16 < self._month_stop_ms:
                # All of one millisecond: only the counter differs.
                self._last = last
                first -= self._month_start_ms << 16
                head = f"{self._prefix}{first >> 16 & 0xFFFFFFFF:08X}"
                first &= 0xFFFF
                counters = struct.pack(f">{count}H", *range(first, first + count)).hex().upper()
                return [head + counters[at : at + 4] for at in range(0, 4 * count, 4)]
        return [self() for _ in range(count)]

    def _begin_month(self, now_ms: int) -> None:
        now = time.localtime(now_ms // 1000)
        year, month = now.tm_year, now.tm_mon
        following = (year + month // 12, month % 12 + 1)
        self._month_start_ms = int(time.mktime((year, month, 1, 0, 0, 0, 0, 1, -1))) * 1000
        self._month_stop_ms = int(time.mktime((*following, 1, 0, 0, 0, 0, 1, -1))) * 1000
        self._prefix = (self._identity + self._random_bytes(4)).hex().upper()
