"""`dledger topic create|list|show|delete|extend|order`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from broker.names import is_system_topic
from cli.asking import ask
from cli.console import say, say_json, say_table
from cli.errors import UsageError
from cli.extending import extend
from cli.options import JsonOption, NameserverOption
from dledger.client.routes import parse_order
from dledger.errors import RemoteProtocolError

if TYPE_CHECKING:
    from dledger.client.admin import AsyncAdmin
    from dledger.client.results import QueueBounds, TopicDescription
    from dledger.model import TopicConfig
    from dledger.remoting.bodies import ClusterInfo

PERMISSIONS = {"rw": 6, "r": 4, "w": 2}
app = typer.Typer(help="Topics.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="TOPIC")]


@app.command("create")
def create(
    name: Name,
    queues: Annotated[
        int, typer.Option("--queues", min=1, max=1024, help="Queues in each broker group.")
    ] = 4,
    permission: Annotated[str, typer.Option("--permission", help="rw, r or w.")] = "rw",
    groups: Annotated[
        list[str] | None,
        typer.Option("--broker", help="Only in this broker group; may be given several times."),
    ] = None,
    nameserver: NameserverOption = None,
    json_output: JsonOption = False,
) -> None:
    """Create a topic, or change the one of that name."""
    if permission not in PERMISSIONS:
        raise UsageError(f"--permission must be rw, r or w, not {permission}")

    async def question(admin: AsyncAdmin) -> dict[str, TopicConfig]:
        await admin.create_topic(
            name, queue_count=queues, permission=PERMISSIONS[permission], broker_names=groups
        )
        return await admin.topic(name)

    found = ask(nameserver, question)
    if json_output:
        say_json({"topic": name, "groups": {group: _settings(c) for group, c in found.items()}})
    else:
        say(f"{name}: {queues} queues in {', '.join(found)}")


@app.command("list")
def list_(
    everything: Annotated[
        bool, typer.Option("--all", help="Also those that the brokers made for themselves.")
    ] = False,
    nameserver: NameserverOption = None,
    json_output: JsonOption = False,
) -> None:
    """List topics."""

    async def question(admin: AsyncAdmin) -> tuple[list[TopicDescription], ClusterInfo]:
        return await admin.describe_topics(), await admin.cluster()

    described, info = ask(nameserver, question)
    clusters = {name: data.cluster for name, data in info.brokers.items()}
    shown = [
        topic
        for topic in described
        if everything
        or not is_system_topic(
            topic.name,
            cluster_name=clusters.get(topic.broker_name, ""),
            broker_name=topic.broker_name,
        )
    ]
    if json_output:
        say_json(
            [
                {
                    "topic": topic.name,
                    "broker_name": topic.broker_name,
                    "read_queues": topic.read_queue_count,
                    "write_queues": topic.write_queue_count,
                    "permission": _permission(topic.permission),
                }
                for topic in shown
            ]
        )
        return
    say_table(
        ["topic", "broker group", "read queues", "write queues", "permission"],
        [
            [
                topic.name,
                topic.broker_name,
                topic.read_queue_count,
                topic.write_queue_count,
                _permission(topic.permission),
            ]
            for topic in shown
        ],
    )


@app.command("show")
def show(name: Name, nameserver: NameserverOption = None, json_output: JsonOption = False) -> None:
    """Show a topic's settings and what each queue holds."""

    async def question(
        admin: AsyncAdmin,
    ) -> tuple[dict[str, TopicConfig], list[QueueBounds], list[str]]:
        settings = await admin.topic(name)
        return settings, await admin.bounds(name), await admin.topic_consumers(name)

    settings, bounds, consumers = ask(nameserver, question)
    if json_output:
        say_json(
            {
                "topic": name,
                "groups": {group: _settings(config) for group, config in settings.items()},
                "queues": [
                    {
                        "broker_name": entry.queue.broker_name,
                        "queue_id": entry.queue.queue_id,
                        "offset_min": entry.offset_min,
                        "offset_max": entry.offset_max,
                    }
                    for entry in bounds
                ],
                "consumer_groups": consumers,
            }
        )
        return
    for group, config in settings.items():
        say(
            f"{name} in {group}: {config.read_queue_count} read queues, "
            f"{config.write_queue_count} write queues, {_permission(config.permission)}"
        )
    say_table(
        ["broker group", "queue", "first offset", "next offset", "messages"],
        [
            [
                entry.queue.broker_name,
                entry.queue.queue_id,
                entry.offset_min,
                entry.offset_max,
                entry.offset_max - entry.offset_min,
            ]
            for entry in bounds
        ],
    )
    say(f"consumer groups: {', '.join(consumers) or 'none'}")


@app.command("delete")
def delete(
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    nameserver: NameserverOption = None,
    json_output: JsonOption = False,
) -> None:
    """Delete a topic with all its messages."""
    if not yes and sys.stdin.isatty():
        typer.confirm(f"Delete {name} with all its messages?", abort=True)

    async def question(admin: AsyncAdmin) -> None:
        await admin.topic(name)
        await admin.delete_topic(name)

    ask(nameserver, question)
    if json_output:
        say_json({"topic": name, "deleted": True})
    else:
        say(f"{name} deleted")


@app.command("extend")
def extend_(
    group: Annotated[str, typer.Option("--broker", help="The broker group that lacks them.")],
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[TOPIC]...", help="All by default.")
    ] = None,
    nameserver: NameserverOption = None,
    json_output: JsonOption = False,
) -> None:
    """Create topics in one more broker group, as they are in the others.

    For a group that was added to a running cluster. Keys of a topic move to other queues thereby,
    unless it is an order topic.
    """
    created = ask(nameserver, lambda admin: extend(admin, group, names or ()))
    if json_output:
        say_json({"group": group, "topics": created})
    else:
        say(f"{group}: {', '.join(created) or 'nothing was missing'}")


@app.command("order")
def order(
    name: Name,
    queues: Annotated[
        str | None,
        typer.Option(
            "--queues", metavar="GROUP:N;...", help="Make it an order topic with these queues."
        ),
    ] = None,
    none: Annotated[bool, typer.Option("--none", help="Make it an ordinary topic again.")] = False,
    nameserver: NameserverOption = None,
    json_output: JsonOption = False,
) -> None:
    """Show or change to which queues the keys of a topic go, whichever groups are up or added.

    Order before availability: while a group is down, keys of its queues cannot be sent.
    """
    if none and queues is not None:
        raise UsageError("give --queues or --none, not both")
    try:
        wanted = {} if none else parse_order(queues or "")
    except RemoteProtocolError as error:
        raise UsageError(f"--queues: {error}") from error

    async def question(admin: AsyncAdmin) -> dict[str, int]:
        topology = admin.topology()
        if none or queues is not None:
            await topology.set_order(name, wanted)
        return await topology.order(name)

    found = ask(nameserver, question)
    if json_output:
        say_json({"topic": name, "order": found})
    else:
        shown = ", ".join(f"{count} of {group}" for group, count in found.items())
        say(f"{name}: " + (f"keys go to {shown}" if found else "no order topic"))


def _settings(config: TopicConfig) -> dict[str, object]:
    return {
        "read_queues": config.read_queue_count,
        "write_queues": config.write_queue_count,
        "permission": _permission(config.permission),
    }


def _permission(bits: int) -> str:
    return ("r" if bits & 4 else "") + ("w" if bits & 2 else "") or "none"
