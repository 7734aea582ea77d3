"""`dledger replica rebuild`: a replica whose data is damaged or lost starts anew."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.cluster import LocalCluster
from cli.console import note, say, say_json
from cli.errors import UsageError
from cli.options import DEFAULT_DATA, DataOption, JsonOption, NameserverOption, nameservers

app = typer.Typer(help="Single replicas.", no_args_is_help=True)

CatchUp = Annotated[
    float, typer.Option("--timeout", help="Seconds to wait until it has caught up.")
]


@app.callback()
def _replica() -> None:
    """Single replicas."""


@app.command("rebuild")
def rebuild(
    replica: Annotated[
        str | None, typer.Argument(metavar="[REPLICA]", help="Of `dledger up`, e.g. broker-a-1.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", metavar="FILE", help="Or another replica's broker.toml."),
    ] = None,
    data: DataOption = DEFAULT_DATA,
    nameserver: NameserverOption = None,
    timeout: CatchUp = 600.0,
    json_output: JsonOption = False,
) -> None:
    """Rebuild a replica from its peers, because its data is damaged or lost.

    It is removed from its group, its data is moved aside, and it joins as somebody new: it gets
    everything from the leader and then votes again. The others must have a majority without it. In
    a cluster of `dledger up` its process is stopped and started too; with --config stop it before
    and start it afterwards.
    """
    if (replica is None) == (config is None):
        raise UsageError("name a replica of `dledger up`, or a file with --config")
    if config is not None:
        rejoin(config, nameserver, json_output=json_output)
        return
    from cli.members import LocalMembers

    cluster = LocalCluster(data)
    LocalMembers(cluster, note).rebuild(str(replica), timeout)
    if json_output:
        say_json({"replica": replica, "rebuilt": True})
    else:
        say(f"{replica} was rebuilt")


def rejoin(
    config: Path, nameserver: str | None, *, json_output: bool, group: str | None = None
) -> None:
    """Prepares the directory of a replica with a `broker.toml` of its own to join its group.

    Args:
        config: The file.
        nameserver: The option as given; by default those in the file.
        json_output: How to say that it is done.
        group: The group that the file must name.

    Raises:
        UsageError: The file is of another group.
        ConfigError: The file is wrong.
    """
    from broker.config import load_broker_config
    from cli.members import GroupMembers
    from dledger.client.sync_admin import Admin

    settings = load_broker_config(config)
    if group not in (None, settings.broker_name):
        raise UsageError(f"{config} is of the group {settings.broker_name}, not of {group}")
    place = settings.replica
    asked = nameserver or ";".join(settings.nameservers) or nameservers(None)
    with Admin(nameserver=asked) as admin:
        members = GroupMembers(admin, settings.broker_name, note)
        member = members.join(place.id, place.address, place.raft_address, settings.data_directory)
    if json_output:
        say_json({"replica": place.id, "incarnation": member.incarnation})
    else:
        say(f"{place.id} is prepared; start it: dledger broker start --config {config}")
