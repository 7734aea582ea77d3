"""Options that several commands share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from cli.errors import UsageError
from cli.layout import DEFAULT_PORT_BASE, HOST, load_layout
from dledger.client.config import nameserver_addresses

DEFAULT_DATA = Path("dledger-data")
NAMESERVER_VARIABLE = "DLEDGER_NAMESERVER"

NameserverOption = Annotated[
    str | None,
    typer.Option(
        "--nameserver",
        metavar="HOST:PORT[;...]",
        help=f"Nameservers; default: ${NAMESERVER_VARIABLE}, else those of ./{DEFAULT_DATA}, "
        f"else {HOST}:{DEFAULT_PORT_BASE}.",
    ),
]
DataOption = Annotated[
    Path, typer.Option("--data", metavar="DIR", help="Where the cluster keeps everything.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def nameservers(option: str | None, data: Path = DEFAULT_DATA) -> str:
    """Returns the nameservers to use, `host:port;host:port`.

    Args:
        option: As given; it goes before everything.
        data: The option as given. Another directory than the default goes before the variable.

    Raises:
        UsageError: Another directory than the default holds no cluster.
    """
    if option:
        return option
    if data != DEFAULT_DATA:
        named = load_layout(data)
        if named is None:
            raise UsageError(f"{data} holds no cluster; start one with `dledger up`")
        return named.nameserver_addresses
    variable = os.environ.get(NAMESERVER_VARIABLE, "").strip()
    if variable:
        return variable
    layout = load_layout(data)
    return layout.nameserver_addresses if layout else f"{HOST}:{DEFAULT_PORT_BASE}"


def nameserver_list(option: str | None, data: Path = DEFAULT_DATA) -> tuple[str, ...]:
    """Returns the same one by one.

    Raises:
        ConfigError: One is not host:port.
        UsageError: Another directory than the default holds no cluster.
    """
    return nameserver_addresses(nameservers(option, data))
