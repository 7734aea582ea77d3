"""`dledger nameserver start` and `dledger broker start`: one server process, in the foreground.

The process becomes the server (exec), so that it holds nothing of the command line's libraries.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from cli.errors import CommandError
from cli.supervisor import server_environment

nameserver_app = typer.Typer(help="Nameservers.", no_args_is_help=True)
broker_app = typer.Typer(help="Broker replicas.", no_args_is_help=True)


@nameserver_app.callback()
def _nameserver() -> None:
    """Nameservers."""


@broker_app.callback()
def _broker() -> None:
    """Broker replicas."""


@nameserver_app.command("start")
def nameserver_start(
    listen: Annotated[
        str, typer.Option("--listen", metavar="HOST:PORT", help="Where to listen.")
    ] = "127.0.0.1:9876",
    expiry_seconds: Annotated[
        float, typer.Option("--expiry-seconds", help="Remove brokers silent for this long.")
    ] = 120.0,
    data: Annotated[
        Path | None, typer.Option("--data", metavar="DIR", help="Keep key-value configuration.")
    ] = None,
) -> None:
    """Run a nameserver until Ctrl-C."""
    from broker.config import parse_address

    parse_address(listen, "--listen")
    arguments = ["--listen", listen, "--expiry-seconds", f"{expiry_seconds:g}"]
    if data is not None:
        arguments += ["--data", str(data)]
    _become("nameserver", arguments)


@broker_app.command("start")
def broker_start(
    config: Annotated[Path, typer.Option("--config", metavar="FILE", help="broker.toml")],
) -> None:
    """Run one broker replica until Ctrl-C."""
    _become("broker", ["--config", str(config)])


def _become(module: str, arguments: list[str]) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    command = [sys.executable, "-P", "-m", module, *arguments]
    try:
        os.execve(sys.executable, command, server_environment())  # noqa: S606 - no shell
    except OSError as error:
        raise CommandError(f"cannot start {module}: {error}") from error
