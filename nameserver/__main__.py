"""Runs one nameserver: `python -P -m nameserver --listen HOST:PORT`.

Exit codes: 0 stopped by a signal, 1 could not start, 2 wrong arguments.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from dledger.errors import ConfigError
from nameserver.server import NameserverConfig, NameserverServer

logger = logging.getLogger("nameserver")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a nameserver until SIGTERM or SIGINT; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -P -m nameserver", description="Tells clients where brokers are."
    )
    parser.add_argument("--listen", default="127.0.0.1:9876", metavar="HOST:PORT")
    parser.add_argument(
        "--expiry-seconds", type=float, default=120.0, help="remove brokers silent for this long"
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="keep key-value configuration")
    options = parser.parse_args(arguments)
    host, _, port = options.listen.rpartition(":")
    if not host or not port.isascii() or not port.isdigit():
        parser.error(f"--listen must be HOST:PORT, not {options.listen!r}")
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", force=True
    )
    try:
        config = NameserverConfig(
            host=host,
            port=int(port),
            expiry_seconds=options.expiry_seconds,
            data_directory=options.data,
        )
    except ConfigError as error:
        parser.error(str(error))
    try:
        asyncio.run(_serve(config))
    except ConfigError as error:  # a directory or an address that cannot be used
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


async def _serve(config: NameserverConfig) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    server = NameserverServer(config)
    await server.start()
    logger.info("nameserver ready address=%s:%d", config.host, server.port)
    try:
        await stopping.wait()
    finally:
        await server.stop()
    logger.info("nameserver stopped")


if __name__ == "__main__":
    sys.exit(main())
