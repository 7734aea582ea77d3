"""`dledger group add|add-replica|remove-replica|transfer-leader`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.asking import ask
from cli.cluster import START_TIMEOUT_S, LocalCluster
from cli.console import note, say, say_json
from cli.errors import UsageError
from cli.extending import extend
from cli.layout import load_layout
from cli.options import DEFAULT_DATA, DataOption, JsonOption, NameserverOption, nameservers
from cli.replica import CatchUp, rejoin

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


@app.command("add-replica")
def add_replica(
    group: Group,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="FILE",
            help="Of a replica on this machine that is not one of `dledger up`: its broker.toml, "
            "in which \\[\\[replicas]] names it and the others.",
        ),
    ] = None,
    data: DataOption = DEFAULT_DATA,
    nameserver: NameserverOption = None,
    timeout: CatchUp = 600.0,
    json_output: JsonOption = False,
) -> None:
    """Add a replica to a broker group: it catches up as a learner, then it votes.

    In a cluster of `dledger up` it is planned and started too. With --config the directory that
    the file names is prepared, and you start the process.
    """
    if config is not None:
        rejoin(config, nameserver, json_output=json_output, group=group)
        return
    from cli.members import LocalMembers

    cluster = LocalCluster(data)
    name = LocalMembers(cluster, note).add(group, timeout)
    if json_output:
        say_json({"group": group, "replica": name})
    else:
        say(f"{group}: {name} was added")


@app.command("remove-replica")
def remove_replica(
    group: Group,
    replica: Annotated[str, typer.Argument(metavar="REPLICA", help="Who leaves, e.g. broker-a-1.")],
    data: DataOption = DEFAULT_DATA,
    nameserver: NameserverOption = None,
    json_output: JsonOption = False,
) -> None:
    """Remove a replica from a broker group, for good. A leader hands over first.

    With --nameserver (or where --data holds no cluster) only the group is changed: the replica's
    process learns of it and ends by itself.
    """
    from cli.members import GroupMembers, LocalMembers
    from dledger.client.sync_admin import Admin

    if nameserver is None and load_layout(data.resolve()) is not None:
        cluster = LocalCluster(data)
        if cluster.group_of(replica) != group:
            raise UsageError(f"{replica} is not a replica of {group}")
        LocalMembers(cluster, note).remove(replica)
    else:
        with Admin(nameserver=nameservers(nameserver)) as admin:
            GroupMembers(admin, group, note).remove(replica)
    if json_output:
        say_json({"group": group, "removed": replica})
    else:
        say(f"{group}: {replica} was removed")
