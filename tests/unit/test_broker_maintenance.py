"""The maintenance thread: results, errors, and what is done while it works."""

from __future__ import annotations

import asyncio
import threading

import pytest

from broker.maintenance import MaintenanceThread


def test_the_loop_does_something_while_the_thread_works() -> None:
    looks: list[str] = []
    enough = threading.Event()

    def look() -> None:
        looks.append(threading.current_thread().name)
        if len(looks) == 2:
            enough.set()

    async def scenario() -> bool:
        maintenance = MaintenanceThread()
        try:
            return await maintenance.run(lambda: enough.wait(timeout=10), look)
        finally:
            maintenance.close()

    assert asyncio.run(scenario())
    assert set(looks) == {threading.current_thread().name}


def test_an_error_of_the_work_is_raised() -> None:
    def fail() -> None:
        raise ZeroDivisionError

    async def scenario() -> None:
        maintenance = MaintenanceThread()
        try:
            with pytest.raises(ZeroDivisionError):
                await maintenance.run(fail, lambda: None)
        finally:
            maintenance.close()

    asyncio.run(scenario())
