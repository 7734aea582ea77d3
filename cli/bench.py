"""`dledger bench`: loads that measure a cluster as its clients see it."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated

import typer

from cli.console import note, say_json, say_table
from cli.errors import UsageError
from cli.options import JsonOption, NameserverOption, nameservers

if TYPE_CHECKING:
    from dledger.bench import Figures, Load

_CASES = {
    "send": "many tasks, each awaiting one send after the other; batched automatically",
    "batch": "explicit batches",
    "latency": "one send after the other",
    "paced": "sends at a steady rate",
    "end-to-end": "from a send at a steady rate to the handler of a push consumer",
    "read": "one consumer reads what the topic holds, decoded, committing every 100 ms",
    "raw": "the same without decoding or committing",
    "fan-out": "several groups read at the end while messages are sent",
}
_SLOW = {"latency": 20, "paced": 10, "end-to-end": 10, "fan-out": 5}


def bench(
    cases: Annotated[
        list[str] | None,
        typer.Argument(metavar="[CASE]...", help=f"Of {', '.join(_CASES)}; all by default."),
    ] = None,
    nameserver: NameserverOption = None,
    topic: Annotated[str, typer.Option(help="Made if it does not exist.")] = "dledger_bench",
    queues: Annotated[int, typer.Option(min=1, help="Of the topic, when it is made.")] = 4,
    messages: Annotated[int, typer.Option(min=1, help="Fewer in the slow cases.")] = 100_000,
    size: Annotated[int, typer.Option(min=1, help="Bytes of a body.")] = 1024,
    window: Annotated[int, typer.Option(min=1, help="Messages under way at a time.")] = 1000,
    rate: Annotated[float, typer.Option(min=0.001, help="Offered messages/s.")] = 1000.0,
    batch: Annotated[int, typer.Option(min=1, help="Messages of an explicit batch.")] = 100,
    groups: Annotated[int, typer.Option(min=1, help="Groups of fan-out.")] = 10,
    as_json: JsonOption = False,
) -> None:
    """Measure a cluster: rates and latencies of sending and reading.

    Every message is real and stays in the topic (`dledger topic delete` takes it away). The client
    runs in this process; on a small machine it shares the processors with the brokers.
    """
    from dledger.bench import Load

    chosen = cases or list(_CASES)
    unknown = [name for name in chosen if name not in _CASES]
    if unknown:
        raise UsageError(f"no case {unknown[0]!r}; there are {', '.join(_CASES)}")
    load = Load(
        nameserver=nameservers(nameserver),
        topic=topic,
        queues=queues,
        messages=messages,
        size_bytes=size,
        window=window,
        rate_per_s=rate,
        batch=batch,
        groups=groups,
    )
    results = run_cases(chosen, load)
    if as_json:
        say_json([figures.as_dict() for figures in results])
        return
    columns = ("case", "messages", "messages/s", "MB/s", "p50 ms", "p99 ms", "max ms")
    rows = [
        (
            *(figures.case, figures.messages, round(figures.messages_per_s)),
            *(round(figures.megabytes_per_s, 1), figures.p50_ms, figures.p99_ms, figures.max_ms),
        )
        for figures in results
    ]
    say_table(columns, rows)


def run_cases(cases: list[str], load: Load) -> list[Figures]:
    """Runs cases one after the other and returns their figures.

    Raises:
        DLedgerError: The cluster refuses or does not answer. What was sent stays.
    """
    from dledger import bench as loads

    run: dict[str, Callable[[Load], Awaitable[Figures]]] = {
        "send": loads.send,
        "batch": loads.send_batches,
        "latency": loads.send_in_turn,
        "paced": loads.send_paced,
        "end-to-end": loads.end_to_end,
        "read": loads.read_backlog,
        "raw": loads.read_raw,
        "fan-out": loads.fan_out,
    }

    async def one(case: str) -> Figures:
        await loads.prepare(load)
        fewer = max(1, load.messages // _SLOW.get(case, 1))
        # The collector's walks over all that was imported, 20 ms each, are not the cluster's.
        gc.collect()
        gc.freeze()
        return await run[case](dataclasses.replace(load, messages=fewer))

    results = []
    for case in cases:
        note(f"{case}: {_CASES[case]} ...")
        results.append(_runner()(one(case)))
    return results


def _runner() -> Callable[[Awaitable[Figures]], Figures]:
    try:
        import uvloop
    except ImportError:
        return asyncio.run  # type: ignore[return-value]
    return uvloop.run  # type: ignore[return-value]
