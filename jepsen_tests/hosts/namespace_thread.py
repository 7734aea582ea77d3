"""Threads of this process that live in another network namespace."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from jepsen_tests.hosts.shell import HarnessError

T = TypeVar("T")

_CLONE_NEWNET = 0x40000000


class NamespaceThread:
    """Calls functions on threads inside a namespace. Threads they start are inside as well."""

    def __init__(self, namespace: Path) -> None:
        self._namespace = namespace
        self._pool = ThreadPoolExecutor(4, initializer=self._enter, thread_name_prefix="netns")

    def call(self, function: Callable[[], T]) -> T:
        """Calls a function there and returns its result. Any thread may call."""
        return self._pool.submit(function).result()

    def close(self) -> None:
        """Ends the threads once they are idle."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _enter(self) -> None:
        library = ctypes.CDLL(None, use_errno=True)
        handle = os.open(self._namespace, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if library.setns(handle, _CLONE_NEWNET):
                number = ctypes.get_errno()
                raise HarnessError(f"cannot enter {self._namespace}: {os.strerror(number)}")
        finally:
            os.close(handle)
