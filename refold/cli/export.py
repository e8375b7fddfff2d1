"""``refold export`` and ``refold import``: a federation copied from any bus to any other."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import click

from refold.bus import parse_url
from refold.bus.contract import Bus
from refold.bus.copying import Copied
from refold.bus.topics import KEPT
from refold.cli.options import Common, common, other_kafka
from refold.cli.output import facts, note, progress_bar, say, say_json, size_text
from refold.federation import Federation
from refold.schemas.errors import UsageError


def _options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give both verbs the same options."""
    what = "Copy this topic (and the logs) only; may be given more than once.  [all]"
    for option in (
        other_kafka,
        click.option("--verify", is_flag=True, help="Compare every record with the source's afterwards."),
        click.option("--topics", "-t", multiple=True, metavar="TOPIC", type=click.Choice(sorted(KEPT)), help=what),
    ):
        function = option(function)
    return function


@click.command(short_help="Copy the federation to a file or another bus.")
@common
@click.argument("target", metavar="FILE|URL")
@_options
def export(common: Common, target: str, topics: tuple[str, ...], verify: bool) -> None:
    """Copy the federation to FILE (a SQLite bus) or to the bus at URL. Cut off, it goes on where it stopped.

    Every record keeps its offset, so digests, positions and evidence stay as they are, and everything that reads works on the
    copy. Run again, it takes in what is new. To move a federation, stop its servers first, then export, then serve the copy.
    Keys are not copied.
    """
    with common.federation() as federation:
        _check_name(bus_url(target), federation.name)
        with common.open_other(bus_url(target)) as bus:
            _copy(federation, bus, topics, verify=verify, as_json=common.json)


@click.command("import", short_help="Copy a federation from a file or another bus.")
@common
@click.argument("source", metavar="FILE|URL")
@_options
def import_(common: Common, source: str, topics: tuple[str, ...], verify: bool) -> None:
    """Copy the federation in FILE (a SQLite bus) or on the bus at URL to the bus that --bus names; else like export."""
    target = common.bus_url()
    with common.other(bus_url(source)) as federation:
        _check_name(target, federation.name)
        with common.open_bus() as bus:
            _copy(federation, bus, topics, verify=verify, as_json=common.json)


def bus_url(word: str) -> str:
    """Return a bus URL as it is, and that of a file by its name."""
    return word if word.partition(":")[0] in ("sqlite", "memory", "kafka") else f"sqlite:{word}"


def _check_name(url: str, federation: str) -> None:
    """Refuse a target that names another federation."""
    named = parse_url(url).federation
    if named not in (None, federation):
        hint = f"leave the name out, or write {federation}: a log's hashes hold its federation's name"
        raise UsageError(f"the copy of {federation!r} cannot be called {named!r}", hint=hint)


def _copy(federation: Federation, target: Bus, topics: tuple[str, ...], *, verify: bool, as_json: bool) -> None:
    begun_s = time.monotonic()
    try:
        with progress_bar() as progress:
            copied = federation.export(target, topics=topics, verify=verify, progress=progress)
    except KeyboardInterrupt:
        note("stopped; the same command goes on where this one was")
        raise
    told = _told(copied, target.url, time.monotonic() - begun_s)
    if as_json:
        say_json(told)
        return
    for line in facts([(name, _words(name, value)) for name, value in told.items() if value is not None]):
        say(line)


def _told(copied: Copied, url: str, took_s: float) -> dict[str, Any]:
    return {
        "federation": copied.federation,
        "target": url,
        "records": copied.records,
        "size_bytes": copied.size_bytes,
        "fillers": copied.fillers,
        "took_s": round(took_s, 3),
        "compared": copied.compared,
        **{name: {"events": chain.next_index, "head": chain.head.hex()} for name, chain in copied.heads.items()},
        "complete": copied.complete,
    }


def _words(name: str, value: Any) -> object:
    match name:
        case "size_bytes":
            return size_text(value)
        case "took_s":
            return f"{value:.1f}"
        case "compared":
            return f"{value} records, all equal"
        case "complete":
            return "yes" if value else "no: for reading only; a server would need the other topics"
        case "accepted" | "rounds":
            return f"{value['events']} events, head {value['head'][:12]}, as in the source"
    return value
