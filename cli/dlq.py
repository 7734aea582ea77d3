"""`dledger dlq list|show|replay`."""

from __future__ import annotations

import asyncio
import datetime
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from cli.asking import ask, require_group
from cli.console import note, say, say_json, say_table
from cli.errors import UsageError
from cli.messages import message_to_json
from cli.options import JsonOption, NameserverOption
from dledger.codes import DEAD_LETTER_PREFIX
from dledger.errors import NotFoundError

if TYPE_CHECKING:
    from dledger.client.admin import AsyncAdmin
    from dledger.client.dead_letters import DeadLetter, DeadLetterQueue, DeadLetters

app = typer.Typer(help="Dead letters: messages given up by a group.", no_args_is_help=True)

# Replayed messages between two commits of the place: what an interruption may repeat.
_COMMIT_EVERY = 20

GroupArgument = Annotated[str, typer.Argument(metavar="GROUP", help="Consumer group.")]


@app.command("list")
def list_(nameserver: NameserverOption = None, json_output: JsonOption = False) -> None:
    """List the groups that have dead letters, and how many were not replayed."""

    async def question(admin: AsyncAdmin) -> list[DeadLetterQueue]:
        letters = admin.dead_letters()
        groups = [
            topic.removeprefix(DEAD_LETTER_PREFIX)
            for topic in await admin.topics()
            if topic.startswith(DEAD_LETTER_PREFIX)
        ]
        return [queue for group in sorted(groups) for queue in await letters.queues(group)]

    queues = ask(nameserver, question)
    if json_output:
        say_json([_queue_to_json(queue) for queue in queues])
        return
    say_table(
        ["group", "broker group", "queue", "dead letters", "not replayed"],
        [[q.group, q.queue.broker_name, q.queue.queue_id, q.count, q.waiting] for q in queues],
    )


@app.command("show")
def show(
    group: GroupArgument,
    count: Annotated[int, typer.Option("--count", min=1, help="At most so many.")] = 100,
    waiting: Annotated[
        bool, typer.Option("--waiting", help="Only those that were not replayed.")
    ] = False,
    nameserver: NameserverOption = None,
    json_output: JsonOption = False,
) -> None:
    """Show a group's dead letters, the oldest first: where from, why, and what was tried when."""

    async def question(admin: AsyncAdmin) -> list[DeadLetter]:
        dead = admin.dead_letters()
        found: list[DeadLetter] = []
        for queue in await _queues(admin, dead, group):
            async for letter in dead.read(queue, (queue.replayed or 0) if waiting else 0):
                found.append(letter)
                if len(found) == count:
                    return found
        return found

    letters = ask(nameserver, question)
    if json_output:
        say_json([_letter_to_json(letter) for letter in letters])
        return
    say_table(
        ["offset", "id", "original topic", "tries", "failed first", "failed last", "reason"],
        [
            [
                letter.message.queue_offset,
                letter.message.message_id,
                letter.original_topic,
                letter.message.reconsume_times,
                _time(letter.failed_at_ms[0] if letter.failed_at_ms else None),
                _time(letter.failed_at_ms[-1] if letter.failed_at_ms else None),
                letter.reason,
            ]
            for letter in letters
        ],
    )


@dataclass(frozen=True)
class ReplayJob:
    """What to replay and how."""

    group: str
    target: str
    rate: float
    count: int | None
    message_id: str | None
    everything: bool
    dry_run: bool


@app.command("replay")
def replay(
    group: GroupArgument,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="group|topic",
            help="group: only this group gets them again. topic: all groups of the original topic.",
        ),
    ] = "group",
    rate: Annotated[float, typer.Option("--rate", min=0.01, help="Messages a second.")] = 100.0,
    count: Annotated[int | None, typer.Option("--count", min=1, help="At most so many.")] = None,
    message_id: Annotated[str | None, typer.Option("--id", help="Only this message.")] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Those that were replayed before, too.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be sent.")
    ] = False,
    nameserver: NameserverOption = None,
    json_output: JsonOption = False,
) -> None:
    """Send dead letters again, the oldest first, and remember how far it went.

    The messages stay among the dead letters. After an interruption up to 20 of them are sent
    twice.
    """
    if to not in ("group", "topic"):
        raise UsageError(f"--to must be group or topic, not {to}")
    job = ReplayJob(group, to, rate, count, message_id, everything, dry_run)

    async def question(admin: AsyncAdmin) -> list[DeadLetter]:
        return await _replay(admin, job)

    letters = ask(nameserver, question)
    if json_output:
        say_json(
            {
                "group": group,
                "dry_run": dry_run,
                "replayed": [_letter_to_json(letter) for letter in letters],
            }
        )
        return
    if dry_run:
        for letter in letters:
            target = f"group {group}" if to == "group" else f"topic {letter.original_topic}"
            say(f"would send {letter.message.message_id} of {letter.original_topic} to {target}")
    say(f"{'would replay' if dry_run else 'replayed'} {len(letters):,} dead letters of {group}")


async def _replay(admin: AsyncAdmin, job: ReplayJob) -> list[DeadLetter]:
    from dledger.client.dead_letters import ReplayTarget

    dead = admin.dead_letters()
    done: list[DeadLetter] = []
    loop = asyncio.get_running_loop()
    begun = loop.time()
    for queue in await _queues(admin, dead, job.group):
        # A single message says nothing about those before it.
        keeps_place = not job.dry_run and job.message_id is None
        start = 0 if job.everything or job.message_id else (queue.replayed or 0)
        noted = position = start
        try:
            async for letter in dead.read(queue, start):
                if job.message_id is not None and job.message_id not in (
                    letter.message.unique_key,
                    letter.message.offset_message_id,
                    letter.original_message_id,
                ):
                    continue
                if not job.dry_run:
                    await asyncio.sleep(max(0.0, begun + len(done) / job.rate - loop.time()))
                    await dead.replay(letter, ReplayTarget(job.target))
                done.append(letter)
                position = letter.message.queue_offset + 1
                if keeps_place and position - noted >= _COMMIT_EVERY:
                    await dead.note_replayed(queue, position)
                    noted = position
                if len(done) == job.count:
                    return done
        finally:
            if keeps_place and position > max(noted, queue.replayed or 0):
                await dead.note_replayed(queue, position)
    if job.message_id is not None and not done:
        raise NotFoundError(f"{job.group} has no dead letter {job.message_id}")
    return done


async def _queues(admin: AsyncAdmin, dead: DeadLetters, group: str) -> list[DeadLetterQueue]:
    queues = await dead.queues(group)
    if not queues:
        await require_group(admin, group)  # those of a deleted group can still be read
        note(f"group {group} has no dead letters")
    return queues


def _queue_to_json(queue: DeadLetterQueue) -> dict[str, object]:
    return {
        "group": queue.group,
        "broker_name": queue.queue.broker_name,
        "queue_id": queue.queue.queue_id,
        "offset_min": queue.offset_min,
        "offset_max": queue.offset_max,
        "replayed": queue.replayed,
        "count": queue.count,
        "not_replayed": queue.waiting,
    }


def _letter_to_json(letter: DeadLetter) -> dict[str, object]:
    return {
        "original_topic": letter.original_topic,
        "original_message_id": letter.original_message_id,
        "reason": letter.reason,
        "failed_at_ms": list(letter.failed_at_ms),
        **message_to_json(letter.message),
    }


def _time(timestamp_ms: int | None) -> str | None:
    if timestamp_ms is None:
        return None
    moment = datetime.datetime.fromtimestamp(timestamp_ms / 1000, datetime.UTC).astimezone()
    return moment.isoformat(sep=" ", timespec="seconds")
