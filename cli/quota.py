"""`dledger topic quota`, `dledger consumer quota` and `dledger consumer guard`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from broker.consumers import GUARD, REFUSE, WARN
from broker.quotas import BYTES, MESSAGES, parse_quotas
from cli.asking import ask, require_group
from cli.console import say, say_json
from cli.errors import UsageError
from cli.options import JsonOption, NameserverOption
from dledger.errors import InvalidParameterError

if TYPE_CHECKING:
    from dledger.client.admin import AsyncAdmin

OFF = "off"
Messages = Annotated[
    str | None, typer.Option("--messages", metavar="N|off", help="Messages a second.")
]
Bytes = Annotated[str | None, typer.Option("--bytes", metavar="N|off", help="Bytes a second.")]
Group = Annotated[str, typer.Option("--group", help="Consumer group.")]


def topic_quota(
    topic: Annotated[str, typer.Argument(metavar="TOPIC")],
    messages: Messages = None,
    size: Bytes = None,
    nameserver: NameserverOption = None,
    json_output: JsonOption = False,
) -> None:
    """Set how much a topic takes in, in each broker group, or show it."""
    changes = _changes(messages, size)

    async def question(admin: AsyncAdmin) -> dict[str, Mapping[str, str]]:
        if changes:
            await admin.inspector().change_topic(topic, changes)
        found = await admin.topic(topic)
        return {name: config.attributes for name, config in found.items()}

    _say(ask(nameserver, question), json_output)


def group_quota(
    group: Group,
    messages: Messages = None,
    size: Bytes = None,
    nameserver: NameserverOption = None,
    json_output: JsonOption = False,
) -> None:
    """Set how much a consumer group takes out of each replica, or show it."""
    changes = _changes(messages, size)

    async def question(admin: AsyncAdmin) -> dict[str, Mapping[str, str]]:
        if changes:
            await admin.inspector().change_group(group, changes)
        return {group: await _attributes(admin, group)}

    _say(ask(nameserver, question), json_output)


def group_guard(
    group: Group,
    mode: Annotated[
        str | None,
        typer.Argument(metavar="[warn|refuse]", help="What happens to members that differ."),
    ] = None,
    nameserver: NameserverOption = None,
    json_output: JsonOption = False,
) -> None:
    """Set whether a group refuses members that subscribe to other things, or show it."""
    if mode not in (None, WARN, REFUSE):
        raise UsageError(f"must be {WARN} or {REFUSE}, not {mode}")

    async def question(admin: AsyncAdmin) -> str:
        if mode is not None:
            await admin.inspector().change_group(group, {GUARD: mode})
        return (await _attributes(admin, group)).get(GUARD, WARN)

    found = ask(nameserver, question)
    if json_output:
        say_json({"group": group, "guard": found})
    else:
        say(f"{group}: {found}")


# --- private ------------------------------------------------------------------------------------


async def _attributes(admin: AsyncAdmin, group: str) -> Mapping[str, str]:
    return (await require_group(admin, group)).attributes


def _changes(messages: str | None, size: str | None) -> dict[str, str | None]:
    given = {name: text for name, text in ((MESSAGES, messages), (BYTES, size)) if text is not None}
    try:
        parse_quotas({name: text for name, text in given.items() if text != OFF})
    except InvalidParameterError as error:
        raise UsageError(str(error)) from error
    return {name: None if text == OFF else text for name, text in given.items()}


def _say(found: Mapping[str, Mapping[str, str]], json_output: bool) -> None:
    shown = {
        place: {
            "messages_per_second": quotas.get(MESSAGES),
            "bytes_per_second": quotas.get(BYTES),
        }
        for place, attributes in found.items()
        for quotas in (parse_quotas(attributes),)
    }
    if json_output:
        say_json(shown)
        return
    for place, quotas in shown.items():
        parts = [f"{value:,g} {name.replace('_', ' ')}" for name, value in quotas.items() if value]
        say(f"{place}: {', '.join(parts) or 'no quota'}")
