"""``refold tail``: topics as they grow."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import click

from refold.bus.contract import Place, Record
from refold.bus.ledger import LedgerReader
from refold.bus.topics import KEPT, is_chunk
from refold.cli.describe import one_line
from refold.cli.options import Common, common
from refold.cli.output import say, say_json, time_text
from refold.consumers.attached import LEDGERS
from refold.federation import Federation
from refold.jsonable import event_json, to_json
from refold.schemas.canonical import decode
from refold.schemas.errors import InvalidRecord

POLL_S = 0.25

Line = tuple[dict[str, Any], str]
"""A record as an object, and what it says in words."""


@click.command(short_help="Follow topics as they grow.")
@common
@click.argument("topics", nargs=-1, metavar="[TOPIC]...", type=click.Choice(sorted(KEPT)))
@click.option("--from-start", is_flag=True, help="Begin with what is there.  [from now on]")
@click.option("--until-end", is_flag=True, help="Stop at the end instead of waiting for more.")
def tail(common: Common, topics: tuple[str, ...], from_start: bool, until_end: bool) -> None:
    """Print the records of topics as they come: accepted, rounds and alerts if none is named.

    Reads beside everyone else and stores no position. Chunks of payloads are passed over.
    """
    chosen = tuple(dict.fromkeys(topics)) or ("accepted", "rounds", "alerts")
    with common.federation() as federation:
        sources = [
            _ledger(federation, topic, from_start=from_start)
            if topic in LEDGERS
            else _records(federation, topic, from_start=from_start)
            for topic in chosen
        ]
        while True:
            quiet = True
            for source in sources:
                for found, text in next(source):
                    quiet = False
                    say_json(found) if common.json else say(_text(found, text))
            if quiet and until_end:
                return
            if quiet:
                time.sleep(POLL_S)


def _ledger(federation: Federation, topic: str, *, from_start: bool) -> Iterator[list[Line]]:
    """Yield again and again what is new in a log."""
    reader = LedgerReader(federation.bus, f"{federation.name}.{topic}")
    for _ in () if from_start else reader.read_to_end():
        pass
    while True:
        yield [
            (event_json(topic, entry, index, event), one_line(event))
            for entry in reader.poll(0.0)
            for index, event in entry.indexed()
        ]


def _records(federation: Federation, topic: str, *, from_start: bool) -> Iterator[list[Line]]:
    """Yield again and again what is new in another topic."""
    name = f"{federation.name}.{topic}"
    places = [Place(name, partition) for partition in range(federation.bus.topics()[name].partitions)]
    with federation.bus.consumer() as consumer:
        consumer.assign(places)
        for place in places:
            if not from_start:
                consumer.seek(place, federation.bus.end_offset(place))
        while True:
            yield [_line(topic, record) for record in consumer.poll(0.0) if not is_chunk(record.headers)]


def _line(topic: str, record: Record) -> Line:
    place = {"log": topic, "partition": record.partition, "offset": record.offset, "time_ms": record.timestamp_ms}
    if record.value is None:
        return {**place, "type": "tombstone"}, f"key {(record.key or b'').decode(errors='replace')}"
    try:
        event: Any = decode(record.value)
    except InvalidRecord as error:
        return {**place, "type": "unreadable"}, f"{len(record.value):,} bytes: {error.message}"
    fields = {name: value for name, value in to_json(event).items() if name not in place}
    return {**place, "type": type(event).__name__, **fields}, one_line(event)


def _text(found: dict[str, Any], text: str) -> str:
    at = found["index"] if "index" in found else f"{found['partition']}/{found['offset']}"
    return f"{found['log']:<10}  {at!s:>8}  {time_text(found['time_ms'])}  {found['type']:<16}  {text}"
