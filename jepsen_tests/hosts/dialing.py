"""Makes a process dial other addresses than it believes: its proxies. For processes of the harness.

Every party knows every other one by the real address, so that routes, message ids and identities
mean the same to all; only where a connection goes to differs from party to party.
"""

from __future__ import annotations

import asyncio
from asyncio.base_events import BaseEventLoop
from collections.abc import Mapping
from typing import Any


def redirect_dialing(addresses: Mapping[str, str]) -> None:
    """From now on, connections of this process to `host:port` go to what is said for it.

    Args:
        addresses: From `host:port` to `host:port`; others are dialled as they are.
    """
    if not addresses:
        return
    kinds: list[type[asyncio.AbstractEventLoop]] = [BaseEventLoop]
    try:
        import uvloop
    except ImportError:
        pass
    else:
        kinds.append(uvloop.Loop)
    for kind in kinds:
        _redirect(kind, dict(addresses))


def _redirect(kind: Any, addresses: Mapping[str, str]) -> None:
    plain = kind.create_connection

    async def create_connection(
        self: Any, factory: Any, host: Any = None, port: Any = None, **more: Any
    ) -> Any:
        found = addresses.get(f"{host}:{port}")
        if found is not None:
            host, _, text = found.rpartition(":")
            port = int(text)
        return await plain(self, factory, host, port, **more)

    kind.create_connection = create_connection
