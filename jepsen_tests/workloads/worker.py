"""One client process: `python -P -m jepsen_tests.workloads.worker PLAN.json`.

Prints `ready`, then a JSON object of counters twice a second; ends in order when its standard input
is closed or on SIGTERM. Exit codes: 0 done, 1 failed (one line on standard error).
"""

from __future__ import annotations

import asyncio
import gc
import json
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from dledger.errors import DLedgerError
from jepsen_tests.hosts.dialing import redirect_dialing
from jepsen_tests.planted.clients import recorder_class
from jepsen_tests.workloads.delayed_send import run_delayed_send
from jepsen_tests.workloads.final_read import run_final_read
from jepsen_tests.workloads.group_consume import (
    run_group_consume,
    run_group_member,
    run_ordered_consume,
    run_ordered_group,
)
from jepsen_tests.workloads.locks import run_locks
from jepsen_tests.workloads.log_client import run_log_client
from jepsen_tests.workloads.log_wire import run_log_wire
from jepsen_tests.workloads.offsets import run_offsets
from jepsen_tests.workloads.ordered_send import run_ordered_send
from jepsen_tests.workloads.plan import WorkerPlan, load_plan
from jepsen_tests.workloads.recorder import Recorder
from jepsen_tests.workloads.retry_consume import run_retry_consume
from jepsen_tests.workloads.setup_topic import run_setup
from jepsen_tests.workloads.topic_config import run_topic_config
from jepsen_tests.workloads.transact import run_transact

Activity = Callable[[WorkerPlan, Recorder, asyncio.Event], Awaitable[None]]

ACTIVITIES: Mapping[str, Activity] = {
    "setup": run_setup,
    "log-client": run_log_client,
    "log-wire": run_log_wire,
    "ordered-send": run_ordered_send,
    "group-consume": run_group_consume,
    "ordered-consume": run_ordered_consume,
    "ordered-group": run_ordered_group,
    "group-member": run_group_member,
    "offsets": run_offsets,
    "transact": run_transact,
    "delayed-send": run_delayed_send,
    "retry-consume": run_retry_consume,
    "locks": run_locks,
    "topic-config": run_topic_config,
    "final": run_final_read,
}
_REPORT_S = 0.5


def main() -> int:
    """Runs the worker of this process; returns the exit code."""
    plan = load_plan(Path(sys.argv[1]))
    redirect_dialing(plan.dial)
    gc.set_threshold(50_000, 20, 20)
    try:
        import uvloop
    except ImportError:
        factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    else:
        factory = uvloop.new_event_loop
    try:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(_run(plan))
    except DLedgerError as error:
        sys.stderr.write(f"error: {plan.kind} on {plan.host}: {error}\n")
        return 1
    except BaseExceptionGroup as group:
        sys.stderr.write(f"error: {plan.kind} on {plan.host}: {group.exceptions[0]!r}\n")
        raise
    return 0


async def _run(plan: WorkerPlan) -> None:
    recorder = recorder_class(plan.plant)(Path(plan.history), plan.index, plan.replicas)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stopping.set)
    loop.add_signal_handler(signal.SIGINT, lambda: None)  # the harness decides when we end
    listener = asyncio.create_task(_watch_input(stopping))
    reporter = asyncio.create_task(_report(recorder))
    _say("ready")
    try:
        await ACTIVITIES[plan.kind](plan, recorder, stopping)
    finally:
        listener.cancel()
        reporter.cancel()
        _say(json.dumps(recorder.counts))
        recorder.close()


async def _watch_input(stopping: asyncio.Event) -> None:
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await reader.read()
    stopping.set()


async def _report(recorder: Recorder) -> None:
    while True:
        await asyncio.sleep(_REPORT_S)
        recorder.flush()
        _say(json.dumps(recorder.counts))


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
