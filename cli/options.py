"""Options that several commands share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from cli.errors import UsageError
from cli.layout import DEFAULT_PORT_BASE, HOST, load_layout

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

    Raises:
        UsageError: A data directory was named that is not there.
    """
    if option:
        return option
    if data != DEFAULT_DATA and not data.is_dir():
        # Asking whatever cluster answers elsewhere would answer another question.
        raise UsageError(f"there is no directory {data}")
    variable = os.environ.get(NAMESERVER_VARIABLE, "").strip()
    if variable:
        return variable
    layout = load_layout(data)
    return layout.nameserver_addresses if layout else f"{HOST}:{DEFAULT_PORT_BASE}"
