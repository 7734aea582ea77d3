"""`dledger consumer list|progress`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cli.asking import ask
from cli.console import say, say_json, say_table
from cli.options import JsonOption, NameserverOption

if TYPE_CHECKING:
    from dledger.client.admin import AsyncAdmin
    from dledger.client.results import QueueProgress

app = typer.Typer(help="Consumer groups.", no_args_is_help=True)


@app.command("list")
def list_(nameserver: NameserverOption = None, json_output: JsonOption = False) -> None:
    """List consumer groups and how many members are online."""

    async def question(admin: AsyncAdmin) -> list[tuple[str, int]]:
        found: list[tuple[str, int]] = []
        for group in await admin.groups():
            online = await admin.consumer_connections(group.name)
            found.append((group.name, len(online.connections) if online else 0))
        return found

    groups = ask(nameserver, question)
    if json_output:
        say_json([{"group": name, "members": members} for name, members in groups])
    else:
        say_table(["group", "members online"], groups)


@app.command("progress")
def progress(
    group: Annotated[str, typer.Option("--group", help="Consumer group.")],
    topic: Annotated[str, typer.Option("--topic", help="Only this topic.")] = "",
    nameserver: NameserverOption = None,
    json_output: JsonOption = False,
) -> None:
    """Show how far a group has come: committed offset, newest offset and lag of each queue."""

    async def question(admin: AsyncAdmin) -> list[QueueProgress]:
        return await admin.consumer_progress(group, topic)

    entries = ask(nameserver, question)
    lag = sum(entry.lag for entry in entries)
    if json_output:
        say_json(
            {
                "group": group,
                "lag": lag,
                "queues": [
                    {
                        "topic": entry.queue.topic,
                        "broker_name": entry.queue.broker_name,
                        "queue_id": entry.queue.queue_id,
                        "consumer_offset": entry.consumer_offset,
                        "broker_offset": entry.broker_offset,
                        "lag": entry.lag,
                    }
                    for entry in entries
                ],
            }
        )
        return
    say_table(
        ["topic", "broker group", "queue", "consumed", "newest", "lag"],
        [
            [
                entry.queue.topic,
                entry.queue.broker_name,
                entry.queue.queue_id,
                entry.consumer_offset,
                entry.broker_offset,
                entry.lag,
            ]
            for entry in entries
        ],
    )
    say(f"lag of {group}: {lag:,}")
