"""Runs a question to a cluster on an event loop of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from cli.options import nameservers
from dledger.errors import GroupNotFoundError

if TYPE_CHECKING:
    from dledger.client.admin import AsyncAdmin
    from dledger.model import GroupConfig

T = TypeVar("T")


def ask(nameserver: str | None, question: Callable[[AsyncAdmin], Awaitable[T]]) -> T:
    """Returns what a question to an admin client gives.

    Args:
        nameserver: The option as given.
        question: Called with a started client.
    """
    from dledger.client.admin import AsyncAdmin

    async def run() -> T:
        async with AsyncAdmin(nameserver=nameservers(nameserver)) as admin:
            return await question(admin)

    return asyncio.run(run())


async def require_group(admin: AsyncAdmin, name: str) -> GroupConfig:
    """Returns the settings of a consumer group.

    Raises:
        GroupNotFoundError: (definite) No broker has it.
    """
    for config in await admin.groups():
        if config.name == name:
            return config
    raise GroupNotFoundError(f"no broker has consumer group {name}")
