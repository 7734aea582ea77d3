"""`dledger message explain`: where a message is and what became of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.asking import ask
from cli.console import say, say_json, say_table
from cli.messages import message_to_json
from cli.options import JsonOption, NameserverOption

if TYPE_CHECKING:
    from dledger.client.admin import AsyncAdmin
    from dledger.client.inspector import Explanation, GroupView, ReplicaCopy


def explain(
    message_id: Annotated[str, typer.Argument(metavar="ID", help="Offset id or unique key.")],
    topic: Annotated[
        str | None, typer.Option("--topic", help="Its topic; a unique key needs it.")
    ] = None,
    nameserver: NameserverOption = None,
    json_output: JsonOption = False,
) -> None:
    """Show a message's log entry, the replicas that hold it, and what each group did with it."""

    async def question(admin: AsyncAdmin) -> Explanation:
        return await admin.inspector().explain(message_id, topic)

    found = ask(nameserver, question)
    if json_output:
        say_json(_to_json(found))
        return
    message = found.message
    say(f"message      {message.message_id}")
    say(f"queue        {message.topic} {message.broker_name} {message.queue_id}")
    say(f"offset       {message.queue_offset}  (physical {message.physical_offset})")
    entry = "unknown" if found.index is None else f"{found.index} of term {found.term}"
    say(f"log entry    {entry}")
    say_table(
        ["replica", "address", "role", "holds it"],
        [
            [
                copy.replica_id,
                copy.address,
                "leader" if copy.is_leader else "",
                _held(copy),
            ]
            for copy in found.replicas
        ],
    )
    if not found.groups:
        say("no consumer group consumes the topic")
        return
    say_table(
        ["group", "is at", "passed it", "retries", "dead letters"],
        [
            [
                view.group,
                view.consumer_offset,
                view.is_passed,
                _attempts(view),
                len(view.dead_letters),
            ]
            for view in found.groups
        ],
    )


# --- private ------------------------------------------------------------------------------------


def _held(copy: ReplicaCopy) -> str:
    if copy.holds is None:
        return "no answer"
    if not copy.holds:
        return "no"
    return "on disk" if copy.is_durable else "in memory"


def _attempts(view: GroupView) -> str:
    times = [str(copy.reconsume_times) for copy in view.retries]
    return f"{len(times)} (attempts {', '.join(times)})" if times else "0"


def _to_json(found: Explanation) -> dict[str, Any]:
    return {
        "message": message_to_json(found.message),
        "log_index": found.index,
        "log_term": found.term,
        "replicas": [
            {
                "replica": copy.replica_id,
                "address": copy.address,
                "leader": copy.is_leader,
                "holds": copy.holds,
                "durable": copy.is_durable,
            }
            for copy in found.replicas
        ],
        "groups": [
            {
                "group": view.group,
                "consumer_offset": view.consumer_offset,
                "passed": view.is_passed,
                "retries": [message_to_json(copy) for copy in view.retries],
                "dead_letters": [message_to_json(copy) for copy in view.dead_letters],
            }
            for view in found.groups
        ],
    }
