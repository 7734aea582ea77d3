"""`dledger message trace`: who sent a message, who consumed it, and how long that took."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.asking import ask
from cli.console import say_json, say_table
from cli.options import JsonOption, NameserverOption
from dledger.errors import NotFoundError, RouteNotFoundError

if TYPE_CHECKING:
    from dledger.client.admin import AsyncAdmin
    from dledger.message.trace import Delivered, Delivering, Published, Record

_TRACES_MAX = 256


def trace(
    message_id: Annotated[str, typer.Argument(metavar="ID", help="Unique key, or a user's key.")],
    topic: Annotated[
        str | None, typer.Option("--trace-topic", help="Where the clients write their traces.")
    ] = None,
    nameserver: NameserverOption = None,
    json_output: JsonOption = False,
) -> None:
    """Show what clients with message trace switched on wrote about a message."""
    from dledger.message.trace import TRACE_TOPIC, decode_trace

    where = topic or TRACE_TOPIC

    async def question(admin: AsyncAdmin) -> list[Record]:
        try:
            found = await admin.messages_by_key(where, message_id, count_max=_TRACES_MAX)
        except RouteNotFoundError:
            return []
        return [record for message in found for record in decode_trace(message.body)]

    rows = story(message_id, ask(nameserver, question))
    if not rows:
        raise NotFoundError(f"no trace of {message_id} in {where}; do its clients write traces?")
    if json_output:
        say_json(rows)
        return
    say_table(
        ["what", "group", "when", "took ms", "success", "attempt", "where"],
        [
            [
                row["what"],
                row["group"],
                _time(row["time_ms"]),
                row["took_ms"],
                row["success"],
                row["attempt"],
                row["where"],
            ]
            for row in rows
        ],
    )


def story(message_id: str, records: Iterable[Record]) -> list[dict[str, Any]]:
    """Returns what happened to a message in order of time; pairs begin and end of a delivery.

    Args:
        message_id: Its id, or one of its keys.
        records: Traces, in any order, of other messages too; a record that came twice counts once.
    """
    from dledger.message.trace import Delivered, Delivering, Published

    wanted = [r for r in records if message_id == r.message_id or message_id in r.keys.split()]
    begins = {r.request_id: r for r in wanted if isinstance(r, Delivering)}
    ends = {r.request_id: r for r in wanted if isinstance(r, Delivered)}
    rows = [_sent(r) for r in dict.fromkeys(r for r in wanted if isinstance(r, Published))]
    rows += [_consumed(begins.get(id_), ends.get(id_)) for id_ in dict.fromkeys([*begins, *ends])]
    return sorted(rows, key=lambda row: int(row["time_ms"]))


# --- private ------------------------------------------------------------------------------------


def _sent(record: Published) -> dict[str, Any]:
    return {
        "what": "sent",
        "message_id": record.message_id,
        "group": record.group,
        "time_ms": record.time_ms,
        "took_ms": record.took_ms,
        "success": record.success,
        "attempt": None,
        "where": f"{record.topic} at {record.store_host}",
    }


def _consumed(begin: Delivering | None, end: Delivered | None) -> dict[str, Any]:
    """Returns one delivery; without an end it is still under way, or its client has gone."""
    either = begin or end
    return {
        "what": "consumed" if end is not None else "handed out",
        "message_id": either.message_id if either is not None else "",
        "group": begin.group if begin is not None else end.group if end is not None else "",
        "time_ms": begin.time_ms if begin is not None else end.time_ms if end is not None else 0,
        "took_ms": None if end is None else end.took_ms,
        "success": None if end is None else end.success,
        "attempt": None if begin is None else begin.retries,
        "where": "",
    }


def _time(timestamp_ms: int) -> str:
    moment = datetime.fromtimestamp(timestamp_ms / 1000, UTC).astimezone()
    return moment.isoformat(sep=" ", timespec="milliseconds")
