"""Keeps small what a mapped file takes of this process's memory.

Every page of a mapping that was looked at counts as memory of the process until the mapping goes,
although the system may take it back at any time. LMDB maps its file once and for all, so a process
would come to look as large as its state. Here the pages are given back after every so many bytes:
the page cache keeps them, and the next access finds them there.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import re
from pathlib import Path
from typing import Final

RELEASE_AFTER_BYTES: Final = 64 << 20
# A look costs about 10 µs, and between two an ordinary use maps far less than a megabyte.
_USES_PER_LOOK: Final = 32
_STATM: Final = "/proc/self/statm"
_MAPS: Final = "/proc/self/maps"
# Address range of a mapping of a file that is shared and read-only, and its path.
_READ_ONLY: Final = re.compile(r"([0-9a-f]+)-([0-9a-f]+) r--s \S+ \S+ [1-9][0-9]* +(/.*)")


class MappedPages:
    """The pages of a file that somebody else has mapped, shared and read-only.

    Without Linux's `/proc` nothing is ever given back.

    Concurrency: the thread that may map the file anew, and no other.
    """

    __slots__ = ("_path", "_release_after_bytes", "_release_at", "_uses")

    def __init__(self, path: Path, release_after_bytes: int = RELEASE_AFTER_BYTES) -> None:
        """Begins to watch.

        Args:
            path: The file.
            release_after_bytes: Pages are given back when the process has mapped so many bytes
                more, of whatever files, than it had after the last time.
        """
        self._path = os.path.realpath(path)
        self._release_after_bytes = release_after_bytes
        self._release_at = (resident_file_bytes() or 0) + release_after_bytes
        self._uses = 0

    def used(self) -> None:
        """Takes note that the file is about to be read; looks how much is mapped now and then."""
        self._uses += 1
        if self._uses >= _USES_PER_LOOK:
            self._uses = 0
            self.look()

    def look(self) -> None:
        """Gives the pages back if there are too many."""
        resident = resident_file_bytes()
        if resident is not None and resident > self._release_at:
            self._release()
            self._release_at = (resident_file_bytes() or 0) + self._release_after_bytes

    def _release(self) -> None:
        # Looked up each time. An address kept from before may be somebody else's by now, whose
        # memory would be lost; of a read-only shared mapping of a file nothing ever is.
        try:
            with open(_MAPS, encoding="utf-8", errors="surrogateescape") as lines:
                found = [_READ_ONLY.match(line) for line in lines]
        except OSError:
            return  # too many open files, for one: later, then
        for mapping in found:
            if mapping is not None and mapping[3] == self._path:
                start, stop = int(mapping[1], 16), int(mapping[2], 16)
                # No more than a hint: where it is refused the pages stay, as they did before.
                _madvise(start, stop - start)


def resident_file_bytes() -> int | None:
    """Returns how much of mapped files is in this process's memory, None if nobody says."""
    try:
        with open(_STATM, "rb", buffering=0) as file:
            return int(file.read().split()[2]) * mmap.PAGESIZE
    except OSError:
        return None


def _madvise(start: int, size_bytes: int) -> None:
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    madvise(start, size_bytes, mmap.MADV_DONTNEED)
