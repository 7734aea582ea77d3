"""Ports and directories of a cluster for tests: nobody else's, and given back whatever happens."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import sys
import tempfile
from pathlib import Path

HOST = "127.0.0.1"
_PREFIX = "dledger-test-"
_LOCK = "in-use"


class Ports:
    """Free ports of this machine, kept from others until `release`."""

    def __init__(self) -> None:
        self._held: list[socket.socket] = []

    def __repr__(self) -> str:
        return f"<Ports held={len(self._held)}>"

    def take(self) -> int:
        """Returns a port that nothing listens on and nobody else is given."""
        held = socket.socket()
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind((HOST, 0))
        port = int(held.getsockname()[1])
        if sys.platform == "linux":
            # Bound but not listening: Linux lets a server of ours bind it too, as both say
            # SO_REUSEADDR, and gives it to nobody who asks for any port. So a replica that is
            # down for a while gets its port back.
            self._held.append(held)
        else:
            held.close()
        return port

    def release(self) -> None:
        """Gives all of them back."""
        for held in self._held:
            held.close()
        self._held.clear()


class TemporaryHome:
    """A directory that lives as long as its cluster.

    What a killed test process leaves behind is removed by the next cluster that anybody of the
    same user starts: the lock on the directory ended with its process.
    """

    def __init__(self, parent: str | Path | None = None) -> None:
        root = Path(parent) if parent is not None else Path(tempfile.gettempdir())
        remove_orphans(root)
        made = Path(tempfile.mkdtemp(prefix=f".{_PREFIX}", dir=root))
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        self._handle: int | None = os.open(made / _LOCK, flags, 0o600)
        fcntl.flock(self._handle, fcntl.LOCK_EX)
        # Gets the name that others look for only now that it is locked.
        self.path = made.rename(root / made.name[1:])

    def __repr__(self) -> str:
        return f"<TemporaryHome {self.path}>"

    def remove(self) -> None:
        """Deletes it. Twice does nothing."""
        if self._handle is not None:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._handle)
            self._handle = None


def remove_orphans(root: Path) -> list[Path]:
    """Deletes the directories of clusters whose processes have ended; returns them."""
    removed: list[Path] = []
    for path in root.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # another user's, or one that is being removed
            handle = os.open(path / _LOCK, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path)
                removed.append(path)
            finally:
                os.close(handle)
    return removed
