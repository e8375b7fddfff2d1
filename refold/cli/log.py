"""``refold log``: the events of a log."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any

import click

from refold.bus.ledger import Entry, LedgerReader
from refold.cli.describe import clients_of, one_line, round_of
from refold.cli.options import Common, common
from refold.cli.output import say, say_json, time_text
from refold.consumers.attached import LEDGERS
from refold.jsonable import event_json
from refold.schemas import events, identity
from refold.schemas.errors import UsageError

POLL_S = 0.5
TYPES = (
    "Genesis",
    "ClientEnrolled",
    "TokenAdmitted",
    "ClientRevoked",
    "ClientReleased",
    "ClientBanned",
    "UpdateAccepted",
    "UpdateRejected",
    "UpdatesRefused",
    "Unattributed",
    "RoundClosed",
    "FederationEnded",
    "FederationOpened",
    "RoundCommitted",
    "Receipts",
    "ClientNotices",
)
assert all(hasattr(events, name) or hasattr(identity, name) for name in TYPES)


@click.command(short_help="Print the events of a log.")
@common
@click.option("--topic", type=click.Choice(LEDGERS), default="accepted", show_default=True, help="Which log.")
@click.option("--round", "round_", type=int, help="Only what is about this round.")
@click.option("--client", help="Only what names this client.")
@click.option("--type", "kind", metavar="TYPE", help=f"Only this type: {', '.join(TYPES)}.")
@click.option("--follow", "-f", is_flag=True, help="Wait for more at the end.")
def log(common: Common, topic: str, round_: int | None, client: str | None, kind: str | None, follow: bool) -> None:
    """Print the events of a log, one on a line: index, time, type, what it says.

    With --json each line is an object with every field of the event.
    """
    wanted = _type(kind)
    with common.federation() as federation:
        for entry in _entries(LedgerReader(federation.bus, f"{federation.name}.{topic}"), follow=follow):
            for index, event in entry.indexed():
                if wanted not in ("", type(event).__name__) or (round_ is not None and round_of(event) != round_):
                    continue
                if client is None or client in clients_of(event):
                    _print(topic, entry, index, event, as_json=common.json)


def _type(kind: str | None) -> str:
    if kind is None or kind in TYPES:
        return kind or ""
    close = difflib.get_close_matches(kind, TYPES, n=1, cutoff=0.4)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(TYPES)}"
    raise UsageError(f"no event type {kind!r}", hint=hint)


def _entries(reader: LedgerReader, *, follow: bool) -> Iterator[Entry]:
    try:
        yield from reader.read_to_end()
        while follow:
            yield from reader.poll(POLL_S)
    finally:
        reader.close()


def _print(topic: str, entry: Entry, index: int, event: Any, *, as_json: bool) -> None:
    if as_json:
        say_json(event_json(topic, entry, index, event))
    else:
        say(f"{index:>6}  {time_text(entry.commit.time_ms)}  {type(event).__name__:<16}  {one_line(event)}")
