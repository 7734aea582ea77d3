"""Runs one broker replica: `python -P -m broker --config broker.toml`.

Exit codes: 0 stopped by a signal; 1 could not start, or had to stop because its disk or its own
code failed; 2 wrong arguments or configuration. Each failure is one line on standard error.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from broker.config import BrokerConfig, load_broker_config
from broker.server import Broker
from dledger.errors import ConfigError, DLedgerError

logger = logging.getLogger("broker")

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
# Garbage is rare here: buffers and records are freed by their reference counts. The default
# threshold of 700 would walk all live objects many times a second under load.
# The sync thread needs the interpreter for a moment between two syncs; by default a busy event loop
# keeps it waiting for 5 ms. benchmarks/produce.py: 5-13 % more messages, p99 8 % lower.
SWITCH_INTERVAL_S = 0.0005
GC_THRESHOLD = 20_000


def main(
    arguments: Sequence[str] | None = None,
    *,
    make_broker: Callable[[BrokerConfig], Broker] = Broker,
) -> int:
    """Runs a replica until SIGTERM or SIGINT; returns the exit code.

    Args:
        arguments: Of the command line; those of this process if None.
        make_broker: Puts the replica together; tests give it other parts, such as a clock.
    """
    parser = argparse.ArgumentParser(
        prog="python -P -m broker", description="One replica of a replicated message broker."
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="broker.toml")
    options = parser.parse_args(arguments)
    try:
        config = load_broker_config(options.config)
    except ConfigError as error:
        named = error.field == "config file"  # the file's own trouble: its text names it
        return _complain(str(error) if named else f"{options.config}: {error}", EXIT_USAGE)
    logging.basicConfig(
        level=config.log_level,
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
        force=True,
    )
    try:
        return _run(_serve(config, make_broker))
    except DLedgerError as error:
        return _complain(f"{config.replica_id} cannot start: {error}", EXIT_FAILED)
    except OSError as error:
        what = f"{config.data_directory}: {error.strerror or error}"
        return _complain(f"{config.replica_id} cannot start: {what}", EXIT_FAILED)


async def _serve(config: BrokerConfig, make_broker: Callable[[BrokerConfig], Broker]) -> int:
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    broker = make_broker(config)
    await broker.start()
    # What exists now lives as long as the process: the collector need not look at it again.
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD, 20, 20)
    stopped = asyncio.ensure_future(stopping.wait())
    failed = asyncio.ensure_future(broker.wait_failed())
    await asyncio.wait({stopped, failed}, return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    failed.cancel()
    try:
        await broker.stop()
    except DLedgerError as error:
        # The disk that failed fails again while closing; that has been reported.
        logger.error("not stopped cleanly: %s", error)
        return EXIT_FAILED
    return EXIT_DONE if broker.failure is None else EXIT_FAILED


def _run(coroutine: Coroutine[Any, Any, int]) -> int:
    """Runs the event loop, the fast one if it is there."""
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    try:
        import uvloop
    except ImportError:
        logger.info("uvloop is not installed, using the standard event loop")
    else:
        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(coroutine)


def _complain(text: str, code: int) -> int:
    sys.stderr.write(f"error: {text}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
