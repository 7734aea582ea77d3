"""`dledger config show`: the settings that hold, defaults included."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from cli import probe
from cli.console import say_json, say_table
from cli.errors import CommandError, UsageError
from cli.options import JsonOption, NameserverOption, nameserver_list
from dledger.codes import RequestCode

app = typer.Typer(help="Settings of broker replicas.", no_args_is_help=True)

# What every replica has for itself: not worth calling changed.
_IDENTITY = frozenset(
    {"replica_id", "replicas", "data_directory", "broker_name", "cluster_name", "nameservers"}
)


@app.callback()
def _config() -> None:
    """Settings of broker replicas."""


@app.command("show")
def show(
    config: Annotated[
        Path | None,
        typer.Option("--config", metavar="FILE", help="A broker.toml; asks no broker."),
    ] = None,
    address: Annotated[
        str | None, typer.Option("--address", metavar="HOST:PORT", help="A running replica.")
    ] = None,
    changed: Annotated[
        bool, typer.Option("--changed", help="Only what differs from the defaults.")
    ] = False,
    nameserver: NameserverOption = None,
    json_output: JsonOption = False,
) -> None:
    """Show the settings that hold: from the file, the environment, set at run time, by default.

    Without --config or --address the leaders of all broker groups are asked.
    """
    from broker.config import parse_address

    if config is not None and address is not None:
        raise UsageError("--config and --address exclude one another")
    if config is not None:
        found = {str(config): _from_file(config)}
    elif address is not None:
        parse_address(address, "--address")
        found = {address: _from_replica(address)}
    else:
        found = {place: _from_replica(place) for place in _leaders(nameserver)}
    defaults = _defaults()
    shown = {
        place: {
            name: value
            for name, value in settings.items()
            if not changed or (name not in _IDENTITY and defaults.get(name) != value)
        }
        for place, settings in found.items()
    }
    if json_output:
        say_json(shown)
        return
    for place, settings in shown.items():
        rows = [
            [name, value, "" if defaults.get(name) == value else defaults.get(name, "")]
            for name, value in settings.items()
        ]
        say_table(["setting", "value", "default, if another"], rows, title=place)


# --- private ------------------------------------------------------------------------------------


def _from_file(path: Path) -> dict[str, str]:
    from broker.config import load_broker_config
    from dledger.config import flatten_config

    return dict(flatten_config(load_broker_config(path)))


def _defaults() -> Mapping[str, str]:
    from broker.config import BrokerConfig, ReplicaConfig
    from dledger.config import flatten_config

    replica = ReplicaConfig(id="a", address="h:1", raft_address="h:2")
    config = BrokerConfig(replica_id="a", replicas=[replica], data_directory=Path())
    return {name: value for name, value in flatten_config(config) if name not in _IDENTITY}


def _from_replica(address: str) -> dict[str, str]:
    answer = probe.call(address, RequestCode.GET_BROKER_CONFIG, timeout_s=3.0)
    if answer is None or answer.code != 0:
        raise CommandError(f"{address} does not answer")
    lines = bytes(answer.body).decode().splitlines()
    return dict(line.partition("=")[::2] for line in lines)


def _leaders(nameserver: str | None) -> list[str]:
    addresses = nameserver_list(nameserver)
    for each in addresses:
        known = probe.cluster_addresses(each, timeout_s=3.0)
        if known is not None:
            return [known[name][0] for name in sorted(known) if 0 in known[name]]
    raise CommandError(f"no nameserver answers at {';'.join(addresses)}")
