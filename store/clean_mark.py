"""The mark beside the LMDB environment that says whether its content can be trusted.

The environment is written without syncing: a killed process loses nothing, because the page cache
survives it; a machine that stops may leave pages of different ages on its disk. So the mark holds
the boot id of the machine while the environment is in use, and `clean` once it was synced and
closed. An environment is trusted if its mark is clean or of this very boot.

Layout: UTF-8 text, one field a line, the last one a CRC-32 of all before it:

    dledger-state 1
    boot_id <text>
    clean 0|1
    crc <8 hex digits>
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import NamedTuple

_HEAD = "dledger-state 1"
_BOOT_ID_PATH = "/proc/sys/kernel/random/boot_id"
_MARK_BYTES_MAX = 4096


class CleanMark(NamedTuple):
    """Who used the environment last, and whether it was closed in order."""

    boot_id: str
    clean: bool

    def trusts(self, boot_id: str) -> bool:
        """Says whether an environment under this mark is intact on a machine with `boot_id`.

        An unknown (empty) boot id equals no other: without one, only a clean mark is trusted.
        """
        return self.clean or (bool(boot_id) and self.boot_id == boot_id)


def machine_boot_id() -> str:
    """Returns a text that changes whenever the machine boots; empty if there is none to read."""
    try:
        return Path(_BOOT_ID_PATH).read_text(encoding="ascii").strip()
    except OSError:
        return ""


def encode_mark(mark: CleanMark) -> bytes:
    """Returns the mark as stored."""
    text = f"{_HEAD}\nboot_id {mark.boot_id}\nclean {int(mark.clean)}\n".encode()
    return text + b"crc %08x\n" % zlib.crc32(text)


def decode_mark(data: bytes) -> CleanMark | None:
    """Returns the mark, or None if the bytes are not one."""
    text, separator, crc = data.rpartition(b"crc ")
    if not separator or crc != b"%08x\n" % zlib.crc32(text):
        return None
    head, boot_id, clean, *_ = (*text.decode("utf-8", "replace").split("\n"), "", "", "")
    if head != _HEAD or not boot_id.startswith("boot_id ") or clean not in ("clean 0", "clean 1"):
        return None
    return CleanMark(boot_id.removeprefix("boot_id "), clean == "clean 1")


def read_mark(path: Path) -> CleanMark | None:
    """Returns the mark in a file, or None if there is none or it is damaged."""
    try:
        with path.open("rb") as file:
            return decode_mark(file.read(_MARK_BYTES_MAX))
    except FileNotFoundError:
        return None


def write_mark(path: Path, mark: CleanMark) -> None:
    """Replaces the mark in a file.

    Durability: synced on return; after a crash the file holds the old or the new mark.
    """
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        file.write(encode_mark(mark))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
