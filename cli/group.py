"""`dledger group transfer-leader`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cli.asking import ask
from cli.console import say, say_json
from cli.options import JsonOption, NameserverOption

if TYPE_CHECKING:
    from dledger.client.admin import AsyncAdmin

app = typer.Typer(help="Broker groups and their replicas.", no_args_is_help=True)

Group = Annotated[str, typer.Argument(metavar="GROUP", help="The broker group, e.g. broker-a.")]


@app.callback()
def _group() -> None:
    """Broker groups and their replicas."""


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
