"""What must not matter to a run: how fast it really is, where objects lie, who asks the machine.

A run under `disturbed` is slow at random moments and has another layout of memory; its digest must
be the one of an undisturbed run. `tripwires` notes every place in the product that asks the machine
for time, chance or a thread, where a simulated run must ask what was handed in.
"""

from __future__ import annotations

import os
import random as random_module
import secrets
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

from jepsen_tests.sim.host import Disk
from jepsen_tests.sim.loop import VirtualLoop
from store.lmdb_env import LmdbEnvironment

REPOSITORY = Path(__file__).parents[2]
PRODUCT = ("broker", "dledger", "nameserver", "store")
WIRES: tuple[tuple[Any, tuple[str, ...]], ...] = (
    (
        time,
        (
            "time",
            "time_ns",
            "monotonic",
            "monotonic_ns",
            "perf_counter",
            "perf_counter_ns",
            "sleep",
        ),
    ),
    (os, ("urandom", "getpid")),
    (
        random_module,
        ("random", "randrange", "randint", "uniform", "choice", "getrandbits", "shuffle", "sample"),
    ),
    (uuid, ("uuid1", "uuid4")),
    (secrets, ("token_bytes", "token_hex", "randbelow")),
    (socket, ("gethostname", "getaddrinfo")),
    (threading.Thread, ("start",)),
    (VirtualLoop, ("run_in_executor",)),
)

SLEEP_S_MAX = 0.003
SLEEP_CHANCE = 0.02
CHURN_CHANCE = 0.3
KEPT_MAX = 2_000


@contextmanager
def _wrapped(owner: Any, name: str, before: Callable[[], None]) -> Iterator[None]:
    """Calls something before each call of a function, for the time of the block."""
    function = getattr(owner, name)

    def call(*arguments: Any, **settings: Any) -> Any:
        before()
        return function(*arguments, **settings)

    setattr(owner, name, call)
    try:
        yield
    finally:
        setattr(owner, name, function)


@contextmanager
def disturbed() -> Iterator[None]:
    """Makes turns of the loop and operations of disks take real time, and memory move."""
    random, sleep = Random(), time.sleep
    kept: list[object] = []

    def delay() -> None:
        if random.random() < SLEEP_CHANCE:
            sleep(random.uniform(0.0, SLEEP_S_MAX))

    def churn() -> None:
        delay()
        if random.random() < CHURN_CHANCE:
            for _ in range(random.randrange(1, 8)):
                kept.append(bytearray(random.randrange(1, 1500)))
                kept.append([None] * random.randrange(1, 100))
            while len(kept) > KEPT_MAX:
                kept.pop(random.randrange(len(kept)))

    with ExitStack() as stack:
        stack.enter_context(_wrapped(VirtualLoop, "_run_once", churn))
        stack.enter_context(_wrapped(Disk, "_called", delay))
        stack.enter_context(_wrapped(LmdbEnvironment, "write", delay))
        yield


@contextmanager
def tripwires() -> Iterator[list[str]]:
    """Gives a list that grows by who in the product asks the machine for what."""
    tripped: list[str] = []

    def wire(what: str) -> Callable[[], None]:
        def trip() -> None:
            place = _asking(sys._getframe(2))
            if place and f"{what} by {place}" not in tripped:
                tripped.append(f"{what} by {place}")

        return trip

    with ExitStack() as stack:
        for owner, names in WIRES:
            for name in names:
                what = f"{owner.__name__}.{name}"
                stack.enter_context(_wrapped(owner, name, wire(what)))
        yield tripped


def _asking(frame: FrameType | None) -> str:
    """Returns which line of the product it was; nothing if our own code is nearer."""
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(REPOSITORY):
            inside = path.relative_to(REPOSITORY)
            if inside.parts[0] in PRODUCT:
                return f"{inside}:{frame.f_lineno}"
            if inside.parts[0] == "jepsen_tests":
                return ""
        frame = frame.f_back
    return ""
