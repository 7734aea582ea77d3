"""`dledger doctor`: looks at everything and says what is wrong."""

from __future__ import annotations

import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import typer

from cli import probe
from cli.console import say, say_json, say_table
from cli.diagnosis import Level, Members, Observation, Routes, diagnose, worst
from cli.errors import CommandError, ExitCode
from cli.layout import load_layout
from cli.options import DEFAULT_DATA, DataOption, JsonOption, NameserverOption, nameserver_list
from dledger.codes import RequestCode
from dledger.errors import DLedgerError
from dledger.remoting.bodies.admin import decode_differences

_PROBES_MAX = 16
_TIMEOUT_S = 2.0
_SHOWN = {Level.GOOD: "ok", Level.WARNING: "look", Level.PROBLEM: "BAD"}


def doctor(
    data: DataOption = DEFAULT_DATA,
    nameserver: NameserverOption = None,
    json_output: JsonOption = False,
) -> None:
    """Check nameservers, leaders, quorum, lag, disks, clocks, versions and subscriptions.

    Exits 0 if nothing is bad, 4 if something is; 1 if no nameserver answers.
    """
    addresses = nameserver_list(nameserver, data)
    with ThreadPoolExecutor(max_workers=_PROBES_MAX) as pool:
        found = pool.map(lambda a: probe.cluster_addresses(a, timeout_s=_TIMEOUT_S), addresses)
        known: dict[str, Routes | None] = dict(zip(addresses, found, strict=True))
        if all(routes is None for routes in known.values()):
            raise CommandError(f"no nameserver answers at {';'.join(addresses)}")
        replicas = _ask_all(pool, _places(known, data if nameserver is None else None))
        differences = _differences(pool, replicas)
    findings = diagnose(known, replicas, differences)
    if json_output:
        say_json(
            {
                "healthy": worst(findings) < Level.PROBLEM,
                "findings": [
                    {"check": f.check, "level": f.level.name.lower(), "text": f.text}
                    for f in findings
                ],
            }
        )
    else:
        rows = [[_SHOWN[f.level], f.check, f.text] for f in findings]
        say_table(["", "check", "finding"], rows)
        say("not healthy" if worst(findings) is Level.PROBLEM else "healthy")
    if worst(findings) is Level.PROBLEM:
        raise typer.Exit(ExitCode.VIOLATION)


# --- private ------------------------------------------------------------------------------------


def _places(known: dict[str, Routes | None], data: Path | None) -> dict[str, str]:
    """Returns the group of each address that a nameserver or the data directory knows."""
    places = {
        address: group
        for routes in known.values()
        for group, addresses in (routes or {}).items()
        for address in addresses.values()
    }
    layout = load_layout(data.resolve()) if data is not None else None
    if layout is not None:
        for group, replica in layout.replicas():
            places.setdefault(replica.address, group.name)
    return places


def _ask_all(pool: ThreadPoolExecutor, places: dict[str, str]) -> list[Observation]:
    """Asks all replicas, and those that these name as members of their group."""
    asked: dict[str, Observation] = {}
    while missing := {a: group for a, group in places.items() if a not in asked}:
        for observation in pool.map(_observe, missing.values(), missing):
            asked[observation.address] = observation
            for address in _members(observation):
                places.setdefault(address, observation.group)
    return [asked[address] for address in sorted(asked, key=lambda a: (places[a], a))]


def _observe(group: str, address: str) -> Observation:
    began = time.time()
    table = probe.broker_runtime(address, timeout_s=_TIMEOUT_S)
    ended = time.time()
    return Observation(
        group=group,
        address=address,
        table=table,
        asked_ms=(began + ended) * 500,
        round_trip_ms=(ended - began) * 1000,
    )


def _members(observation: Observation) -> Iterable[str]:
    text = (observation.table or {}).get("raftMembers", "")
    return [part.partition("=")[2] for part in text.split(";") if "=" in part]


def _differences(pool: ThreadPoolExecutor, replicas: list[Observation]) -> dict[str, Members]:
    leaders = [each.address for each in replicas if each.serves]
    found: dict[str, Members] = {}
    for groups in pool.map(_ask_differences, leaders):
        found.update(groups)
    return found


def _ask_differences(address: str) -> dict[str, Members]:
    answer = probe.call(address, RequestCode.GET_SUBSCRIPTION_DIFFERENCES, timeout_s=_TIMEOUT_S)
    if answer is None or answer.code != 0:
        return {}
    try:
        body = decode_differences(answer.body)
    except DLedgerError:
        return {}
    return {
        group: {member.client_id: member.topics for member in members}
        for group, members in body.groups.items()
    }
