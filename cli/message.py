"""`dledger message get|query`."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.asking import ask
from cli.console import say, say_json, say_table
from cli.messages import message_to_json
from cli.options import JsonOption, NameserverOption
from dledger.errors import NotFoundError

if TYPE_CHECKING:
    from dledger.client.admin import AsyncAdmin
    from dledger.message import ReceivedMessage

app = typer.Typer(help="Single messages.", no_args_is_help=True)


@app.command("get")
def get(
    message_id: Annotated[str, typer.Argument(metavar="ID", help="Offset id or unique key.")],
    topic: Annotated[
        str | None, typer.Option("--topic", help="Its topic; a unique key needs it.")
    ] = None,
    nameserver: NameserverOption = None,
    json_output: JsonOption = False,
) -> None:
    """Show one message by either of its ids."""

    async def question(admin: AsyncAdmin) -> ReceivedMessage:
        return await admin.message(message_id, topic)

    message = ask(nameserver, question)
    if json_output:
        say_json(message_to_json(message))
        return
    for name, value in _facts(message).items():
        say(f"{name:<18} {value}")
    say("")
    say(message.body.decode("utf-8", "backslashreplace"))


@app.command("query")
def query(
    topic: Annotated[str, typer.Argument(metavar="TOPIC")],
    key: Annotated[str, typer.Option("--key", help="One of the keys given when sending.")],
    unique: Annotated[
        bool, typer.Option("--unique", help="The key is a unique key: all copies of one send.")
    ] = False,
    count: Annotated[int, typer.Option("--count", min=1, max=1000, help="At most so many.")] = 64,
    nameserver: NameserverOption = None,
    json_output: JsonOption = False,
) -> None:
    """Find messages by key, oldest first."""

    async def question(admin: AsyncAdmin) -> list[ReceivedMessage]:
        return await admin.messages_by_key(topic, key, unique=unique, count_max=count)

    messages = ask(nameserver, question)
    if json_output:
        say_json([message_to_json(message) for message in messages])
        return
    if not messages:
        raise NotFoundError(f"no message of {topic} has the key {key}")
    say_table(
        ["id", "broker group", "queue", "offset", "stored", "tags", "bytes"],
        [
            [
                message.message_id,
                message.broker_name,
                message.queue_id,
                message.queue_offset,
                _time(message.store_timestamp_ms),
                message.tags,
                len(message.body),
            ]
            for message in messages
        ],
    )


def _facts(message: ReceivedMessage) -> dict[str, Any]:
    return {
        "id": message.message_id,
        "offset id": message.offset_message_id,
        "topic": message.topic,
        "queue": f"{message.broker_name} {message.queue_id} at {message.queue_offset}",
        "tags": message.tags or "-",
        "keys": " ".join(message.keys) or "-",
        "born": f"{_time(message.born_timestamp_ms)} at {message.born_host}",
        "stored": f"{_time(message.store_timestamp_ms)} at {message.store_host}",
        "properties": " ".join(f"{k}={v}" for k, v in message.properties.items()) or "-",
    }


def _time(timestamp_ms: int) -> str:
    moment = datetime.datetime.fromtimestamp(timestamp_ms / 1000, datetime.UTC).astimezone()
    return moment.isoformat(sep=" ", timespec="milliseconds")
