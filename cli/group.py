"""`dledger group add|transfer-leader`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cli.asking import ask
from cli.cluster import START_TIMEOUT_S, LocalCluster
from cli.console import say, say_json
from cli.extending import extend
from cli.options import DEFAULT_DATA, DataOption, JsonOption, NameserverOption

if TYPE_CHECKING:
    from dledger.client.admin import AsyncAdmin

app = typer.Typer(help="Broker groups and their replicas.", no_args_is_help=True)

Group = Annotated[str, typer.Argument(metavar="GROUP", help="The broker group, e.g. broker-a.")]


@app.callback()
def _group() -> None:
    """Broker groups and their replicas."""


@app.command("add")
def add(
    replicas: Annotated[int, typer.Option("--replicas", help="Of the new group: 1, 3 or 5.")] = 3,
    topics: Annotated[
        bool,
        typer.Option("--topics/--no-topics", help="Extend all topics and consumer groups to it."),
    ] = True,
    data: DataOption = DEFAULT_DATA,
    timeout: Annotated[
        float, typer.Option("--timeout", help="Seconds to wait for its leader.")
    ] = START_TIMEOUT_S,
    json_output: JsonOption = False,
) -> None:
    """Add a broker group to the cluster of a data directory while it runs.

    Producers and consumers use it within 30 seconds. Keys of extended topics move to other queues,
    unless they are order topics: see `dledger topic order`.
    """
    cluster = LocalCluster(data)
    name = cluster.add_group(replicas)
    cluster.wait_serving(timeout)
    extended: list[str] = []
    if topics:
        extended = ask(cluster.nameserver, lambda admin: extend(admin, name))
    if json_output:
        say_json({"group": name, "topics": extended})
    else:
        say(f"{name} serves; {len(extended)} topics extended to it")


@app.command("transfer-leader")
def transfer_leader(
    group: Group,
    replica: Annotated[
        str | None,
        typer.Argument(metavar="[REPLICA]", help="Who shall lead; any replica that is ready."),
    ] = None,
    nameserver: NameserverOption = None,
    json_output: JsonOption = False,
) -> None:
    """Hand the leadership of a broker group to another replica, without an election timeout."""

    async def question(admin: AsyncAdmin) -> str:
        return await admin.transfer_leader(group, replica)

    leader = ask(nameserver, question)
    if json_output:
        say_json({"group": group, "leader": leader or None})
    else:
        say(f"{group}: led by {leader or 'another replica'}")
