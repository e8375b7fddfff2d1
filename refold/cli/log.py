"""``refold log``: the events of a log."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any

import click

from refold.bus.ledger import Entry, LedgerReader
from refold.cli.describe import clients_of, one_line, round_of
from refold.cli.graph import graph
from refold.cli.options import Common, common
from refold.cli.output import note, say, say_json, short, time_text
from refold.consumers.attached import LEDGERS
from refold.federation import Federation
from refold.jsonable import event_json
from refold.producers.lineage import Lineage
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
    "RolledBack",
    "Regridded",
    "PolicyChanged",
    "ModelReported",
    "FederationEnded",
    "FederationOpened",
    "RoundCommitted",
    "Overflowed",
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
@click.option(
    "--graph", "as_graph", is_flag=True, help="Draw the rounds as a tree, newest first; the other options but --json rest."
)
def log(
    common: Common, topic: str, round_: int | None, client: str | None, kind: str | None, follow: bool, as_graph: bool
) -> None:
    """Print the events of a log, one on a line: index, time, type, what it says.

    With --json each line is an object with every field of the event.
    """
    wanted = _type(kind)
    with common.federation() as federation:
        if as_graph:
            _print_graph(federation, as_json=common.json)
            return
        found = False
        for entry in _entries(LedgerReader(federation.bus, f"{federation.name}.{topic}"), follow=follow):
            for index, event in entry.indexed():
                if wanted not in ("", type(event).__name__) or (round_ is not None and round_of(event) != round_):
                    continue
                if client is None or client in clients_of(event):
                    found = True
                    _print(topic, entry, index, event, as_json=common.json)
        if not found:
            note(f"no event of {topic} matches")


def _print_graph(federation: Federation, *, as_json: bool) -> None:
    history = federation.history()
    try:
        lineage = history.lineage
    finally:
        history.close()
    past = lineage.past()
    for drawing, round_ in graph({number: made.parent for number, made in lineage.rounds.items()}):
        if as_json:
            if round_ is not None:
                say_json(_node(lineage, round_, is_past=round_ in past))
            continue
        said = "" if round_ is None else f"  {_told(lineage, round_, is_past=round_ in past)}"
        say(f"{drawing}{said}")


def _told(lineage: Lineage, round_: int, *, is_past: bool) -> str:
    made = lineage.rounds.get(round_)
    what = "initial" if made is None else f"{made.outcome}{f': {made.reason}' if made.reason else ''}"
    state = short(lineage.state_digest(round_) or b"")
    return f"r{round_}  {state}  {what}{'' if is_past else '  left'}{'  HEAD' if round_ == lineage.head else ''}"


def _node(lineage: Lineage, round_: int, *, is_past: bool) -> dict[str, object]:
    made = lineage.rounds.get(round_)
    return {
        "round": round_,
        "parent": made.parent if made else None,
        "outcome": made.outcome if made else "initial",
        "reason": made.reason if made else "",
        "state": (lineage.state_digest(round_) or b"").hex(),
        "is_past": is_past,
        "is_head": round_ == lineage.head,
    }


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
