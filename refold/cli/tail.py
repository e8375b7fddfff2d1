"""``refold tail``: topics as they grow."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import click

from refold.bus.comparing import LOGS
from refold.bus.contract import Place, Record
from refold.bus.ledger import LedgerReader
from refold.bus.topics import KEPT, is_chunk
from refold.cli.describe import one_line
from refold.cli.options import Common, common
from refold.cli.output import say, say_json, time_text
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
    with common.federation() as federation, ExitStack() as stack:
        sources = [(_Log if topic in LOGS else _Records)(federation, topic, from_start=from_start) for topic in chosen]
        for source in sources:
            stack.callback(source.close)
        while True:
            at_ends = [_print_new(source, POLL_S / len(sources), as_json=common.json) for source in sources]
            if all(at_ends) and until_end:
                return


def _print_new(source: _Log | _Records, timeout_s: float, *, as_json: bool) -> bool:
    """Print what is new, and return whether that was all there is."""
    lines = source.poll(timeout_s)
    for found, text in lines:
        say_json(found) if as_json else say(_text(found, text))
    return not lines and source.at_end()


class _Log:
    """What is new in a log, event by event."""

    def __init__(self, federation: Federation, topic: str, *, from_start: bool) -> None:
        self._topic = topic
        self._bus = federation.bus
        self._reader = LedgerReader(federation.bus, f"{federation.name}.{topic}")
        for _ in () if from_start else self._reader.read_to_end():
            pass

    def poll(self, timeout_s: float) -> list[Line]:
        """Return what is new, waiting so long for it."""
        return [
            (event_json(self._topic, entry, index, event), one_line(event))
            for entry in self._reader.poll(timeout_s)
            for index, event in entry.indexed()
        ]

    def at_end(self) -> bool:
        """Whether nothing is left; a poll that brought nothing does not say so on every bus."""
        return self._reader.next_offset >= self._bus.end_offset(self._reader.place)

    def close(self) -> None:
        """Let go of the reader."""
        self._reader.close()


class _Records:
    """What is new in another topic, record by record."""

    def __init__(self, federation: Federation, topic: str, *, from_start: bool) -> None:
        name = f"{federation.name}.{topic}"
        self._topic = topic
        self._bus = federation.bus
        self._places = [Place(name, partition) for partition in range(federation.bus.topics()[name].partitions)]
        self._consumer = federation.bus.consumer()
        self._consumer.assign(self._places)
        for place in self._places if not from_start else ():
            self._consumer.seek(place, federation.bus.end_offset(place))

    def poll(self, timeout_s: float) -> list[Line]:
        """Return what is new, waiting so long for it."""
        return [_line(self._topic, record) for record in self._consumer.poll(timeout_s) if not is_chunk(record.headers)]

    def at_end(self) -> bool:
        """Whether nothing is left."""
        return all(self._consumer.position(place) >= self._bus.end_offset(place) for place in self._places)

    def close(self) -> None:
        """Let go of the consumer."""
        self._consumer.close()


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
