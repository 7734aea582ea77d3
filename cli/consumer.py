"""`dledger consumer list|progress|reset|clone`."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from cli.asking import ask, require_group
from cli.console import say, say_json, say_table
from cli.errors import CommandError
from cli.options import JsonOption, NameserverOption

if TYPE_CHECKING:
    from dledger.client.admin import AsyncAdmin
    from dledger.client.results import QueueProgress
    from dledger.model import ConsumeFrom, MessageQueue

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
        found = await admin.consumer_progress(group, topic)
        if not found:
            await require_group(admin, group)
        return found

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


@app.command("reset")
def reset(
    group: Annotated[str, typer.Option("--group", help="Consumer group.")],
    topic: Annotated[str, typer.Option("--topic", help="Topic.")],
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="earliest|latest|TIME|OFFSET",
            help="Where to: TIME as 2026-01-31T12:00 (local unless it names a zone) or in ms since "
            "the epoch with the suffix 'ms'; OFFSET a plain number, with --queue.",
        ),
    ],
    queue: Annotated[int | None, typer.Option("--queue", help="Only this queue id.")] = None,
    broker_group: Annotated[
        str | None, typer.Option("--broker-group", help="Of the queue, if there are several.")
    ] = None,
    nameserver: NameserverOption = None,
    json_output: JsonOption = False,
) -> None:
    """Move a consumer group; members that run follow at once, others when they come."""
    target = parse_target(to, has_queue=queue is not None)

    async def question(admin: AsyncAdmin) -> dict[MessageQueue, int]:
        from dledger.errors import InvalidParameterError

        chosen = None
        if queue is not None:
            found = [
                each
                for each in await admin.queues(topic)
                if each.queue_id == queue and broker_group in (None, each.broker_name)
            ]
            if len(found) != 1:
                text = f"{len(found)} queues of {topic} have id {queue}; see --broker-group"
                raise InvalidParameterError(text)
            chosen = found[0]
        if isinstance(target, Offset) and chosen is not None:
            await admin.move_offset(group, chosen, target.value)
            return {chosen: target.value}
        where: ConsumeFrom | int = 0 if isinstance(target, Offset) else target
        return await admin.reset_offsets(group, topic, where, queue=chosen)

    moved = ask(nameserver, question)
    if json_output:
        say_json(
            {
                "group": group,
                "queues": [
                    {
                        "topic": each.topic,
                        "broker_name": each.broker_name,
                        "queue_id": each.queue_id,
                        "consumer_offset": offset,
                    }
                    for each, offset in moved.items()
                ],
            }
        )
    else:
        rows = [[each.topic, each.broker_name, each.queue_id, at] for each, at in moved.items()]
        say_table(["topic", "broker group", "queue", "goes on at"], rows)


@app.command("clone")
def clone(
    source: Annotated[str, typer.Option("--from-group", help="Group to look at.")],
    target: Annotated[str, typer.Option("--to-group", help="Group to move.")],
    topic: Annotated[str, typer.Option("--topic", help="Only this topic.")] = "",
    nameserver: NameserverOption = None,
) -> None:
    """Move a consumer group to where another one is."""

    async def question(admin: AsyncAdmin) -> None:
        if not await admin.consumer_progress(source, topic):
            await require_group(admin, source)
            raise CommandError(
                f"{source} has no offsets {f'of {topic} ' if topic else ''}to follow"
            )
        await admin.clone_offsets(source, target, topic)

    ask(nameserver, question)
    say(f"{target} goes on where {source} is")


class Offset(NamedTuple):
    """A plain offset of one queue."""

    value: int


def parse_target(text: str, *, has_queue: bool) -> ConsumeFrom | int | Offset:
    """Returns what `--to` means: a place, a time in ms since the epoch, or an offset.

    Raises:
        typer.BadParameter: None of these, or an offset without a queue.
    """
    from dledger.model import ConsumeFrom

    places = {"earliest": ConsumeFrom.EARLIEST, "latest": ConsumeFrom.LATEST}
    if text in places:
        return places[text]
    number = text.removesuffix("ms")
    if number.isascii() and number.isdigit() and len(number) < 19:
        if number != text:
            return int(number)
        if not has_queue:
            raise typer.BadParameter("an offset needs --queue", param_hint="--to")
        return Offset(int(number))
    try:
        moment = datetime.fromisoformat(text)
        return max(0, int(moment.timestamp() * 1000))
    except (ValueError, OverflowError, OSError):
        raise typer.BadParameter(
            "must be earliest, latest, a time or an offset", param_hint="--to"
        ) from None
