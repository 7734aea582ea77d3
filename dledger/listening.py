"""Closing a listener so that nothing accepted is left behind.

asyncio accepts a connection in one turn of its loop and makes the transport in the next one, which
fails if the listener was closed in between: nobody then owns the socket, and its peer waits until
the garbage collector finds it (Python issue 109564).
"""

from __future__ import annotations

import asyncio


def close_listener(listener: asyncio.Server) -> asyncio.Future[None]:
    """Accepts nothing more from now on, and closes at the loop's next turn.

    Open connections stay. What was accepted in this very turn still gets its `connection_made`,
    before the returned future is done: the protocols have to refuse by themselves from now on.

    Args:
        listener: Serving, or closed already, which is no error.

    Returns:
        Done when the address is free. It need not be awaited.
    """
    loop = asyncio.get_running_loop()
    closed: asyncio.Future[None] = loop.create_future()

    def close() -> None:
        listener.close()
        if not closed.done():
            closed.set_result(None)

    if listener.is_serving():
        for listening in listener.sockets:
            loop.remove_reader(listening.fileno())
        # Behind the tasks that make the transports of what was accepted.
        loop.call_soon(close)
    else:
        close()
    return closed
