"""How far each group is: from the logs' own positions, not from the groups' offsets, which only display progress."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from refold.bus.contract import Place
from refold.bus.ledger import Entry, LedgerReader
from refold.cli.output import time_text
from refold.federation import Federation
from refold.producers.lineage import Lineage
from refold.schemas.commits import Position

Status = dict[str, Any]


def group_status(federation: Federation, groups: Sequence[str]) -> list[Status]:
    """Return for each group what it has still to do, and who wrote last for it.

    The bus does not tell who holds a place; whoever wrote a log's last commit held it then.
    """
    accepted = _last(federation, "accepted")
    rounds = _last(federation, "rounds")
    history = federation.history()
    try:
        newest, lineage = max(history.snapshots, default=None), history.lineage
    finally:
        history.close()
    made = {
        "consistency": lambda: _status("consistency", _unread(federation), "records of updates", None),
        "detection": lambda: _status("detection", _unjudged(federation, accepted), "records of checked", accepted),
        "aggregation": lambda: _status("aggregation", _uncovered(accepted, rounds), "events of accepted", rounds),
        "snapshots": lambda: _status("snapshots", _due(federation, lineage, newest), "snapshots", None),
    }
    return [made[group]() for group in groups]


def _status(group: str, to_do: int, of: str, last: Entry | None) -> Status:
    writer, when = (last.commit.writer, time_text(last.commit.time_ms)) if last else (None, None)
    return {"group": group, "to_do": to_do, "of": of, "last_writer": writer, "last_time": when}


def _last(federation: Federation, log: str) -> Entry | None:
    reader = LedgerReader(federation.bus, f"{federation.name}.{log}")
    last: Entry | None = None
    try:
        for entry in reader.read_to_end():
            last = entry
    finally:
        reader.close()
    return last


def _unread(federation: Federation) -> int:
    """Return how many offsets of `updates` no member of consistency says it has read."""
    topic = federation.topics.updates
    lag = federation.bus.lag(f"{federation.name}.consistency")
    places = [Place(topic, partition) for partition in range(federation.bus.topics()[topic].partitions)]
    left = {place: federation.bus.end_offset(place) - federation.bus.begin_offset(place) for place in places}
    return sum(lag.get(place, left[place]) for place in places)


def _unjudged(federation: Federation, accepted: Entry | None) -> int:
    position = accepted.commit.position if accepted else Position()
    return federation.bus.end_offset(Place(federation.topics.checked, 0)) - position.checked


def _uncovered(accepted: Entry | None, rounds: Entry | None) -> int:
    covered = rounds.commit.position.accepted_index if rounds else 0
    return (accepted.commit.next_index if accepted else 0) - covered


def _due(federation: Federation, lineage: Lineage, newest: int | None) -> int:
    """Return 1 where the policy asks for a snapshot that is not there yet."""
    if lineage.opened is None:
        return 0
    every = federation.genesis.snapshots.every_rounds
    return int(newest is None or lineage.head // every * every > newest)
