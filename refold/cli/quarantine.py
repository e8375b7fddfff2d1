"""``refold quarantine``: refused updates, kept with their original bytes, and clients that are kept out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from operator import itemgetter
from typing import Any

import click

from refold.bus.contract import MAX_RECORD_BYTES, Place, Record
from refold.bus.payloads import PayloadReader
from refold.bus.ranges import records_in
from refold.bus.topics import is_chunk
from refold.cli.options import Common, common, patient
from refold.cli.ordering import order
from refold.cli.output import facts, note, say, say_json, size_text, table, time_text
from refold.federation import Federation
from refold.jsonable import to_json
from refold.schemas.canonical import decode
from refold.schemas.checks import BanClient, Quarantined, ReleaseClient
from refold.schemas.errors import InvalidRecord, NotFoundError, UsageError
from refold.schemas.updates import ClientUpdate

SAID = ("kind", "base_round", "codec", "num_examples", "metrics", "sequence", "note")
"""What `show` tells of a manifest."""


@click.group(short_help="List and show refused updates; ban and release clients.")
def quarantine() -> None:
    """List and show refused updates, which are kept and never applied; keep clients out, and let them in again."""


@quarantine.command("list")
@common
@click.option("--client", help="Only this client's.")
@click.option("--reason", help="Only with this reason.")
def list_(common: Common, client: str | None, reason: str | None) -> None:
    """List what is in quarantine, oldest first, each by where it lay in `updates`."""
    with common.federation() as federation:
        # What is told of each and no more: the records hold up to 64 KiB of refused bytes.
        told: Callable[[Record, Quarantined], Any] = _object if common.json else _row
        found = [
            ((record.timestamp_ms, said.partition, said.offset), told(record, said))
            for record, said in _kept(federation)
            if client in (None, said.client) and (reason is None or reason in said.reasons)
        ]
    found.sort(key=itemgetter(0))
    if common.json:
        for _, one in found:
            say_json(one)
        return
    for line in table(("update", "client", "reasons", "size", "when"), [row for _, row in found]):
        say(line)


def _row(record: Record, said: Quarantined) -> tuple[str, ...]:
    update, size = f"{said.partition}/{said.offset}", size_text(said.payload.size_bytes)
    return (update, said.client or "-", ",".join(said.reasons), size, time_text(record.timestamp_ms))


@quarantine.command("show")
@common
@click.argument("update", metavar="PARTITION/OFFSET")
@click.option("-o", "--output", metavar="FILE", help="Write the original bytes: the manifest, then the chunks that came.")
def show(common: Common, update: str, output: str | None) -> None:
    """Show why an update is in quarantine, and what it said of itself."""
    wanted = _place(update)
    with common.federation() as federation:
        found = [(record, said) for record, said in _kept(federation) if (said.partition, said.offset) == wanted]
        if not found:
            raise NotFoundError(f"no update {update} in quarantine", hint="`refold quarantine list` names them")
        record, said = found[-1]
        reader = PayloadReader(federation.bus, federation.topics.quarantine)
        try:
            manifest = _copy(reader.read(said.payload), said.record_bytes, output)
        finally:
            reader.close()
    if output:
        size_bytes = said.payload.size_bytes
        note(f"wrote {size_bytes:,} bytes to {output}, {said.record_bytes:,} of them the manifest; they are not to be trusted")
    told = {**_object(record, said), "manifest": _manifest(manifest)}
    if common.json:
        say_json(told)
    else:
        _tell(told)


@quarantine.command("ban")
@common
@click.argument("name")
@click.option("--reason", default="", help="Why; it is kept in the log.")
@patient("the server has taken it")
def ban(common: Common, name: str, reason: str, timeout_s: float | None) -> None:
    """Take nothing of the client NAME from now on. What was accepted stays. Needs the operator's key."""
    _ordered(common, BanClient(name, reason), "banned", timeout_s)


@quarantine.command("release")
@common
@click.argument("name")
@click.option("--reason", default="", help="Why; it is kept in the log.")
@patient("the server has taken it")
def release(common: Common, name: str, reason: str, timeout_s: float | None) -> None:
    """Let the client NAME, frozen or banned, take part again. What was refused stays so. Needs the operator's key."""
    _ordered(common, ReleaseClient(name, reason), "released", timeout_s)


def _ordered(common: Common, asked: BanClient | ReleaseClient, done: str, timeout_s: float | None) -> None:
    with common.federation() as federation:
        command, index = order(federation, asked, timeout_s=timeout_s)
    if common.json:
        say_json({"client": asked.client, "command": command.hex(), "index": index})
    else:
        say(f"{asked.client}  {'ordered' if index is None else f'{done} by event {index}'}")


def _copy(chunks: Iterable[bytes], first_bytes: int, output: str | None) -> bytes:
    """Write chunks to a file, if one is named, as they come; return the first bytes of all."""
    first = bytearray()
    with open(output or os.devnull, "wb") as file:
        for chunk in chunks:
            first += chunk[: max(0, min(first_bytes, MAX_RECORD_BYTES) - len(first))]
            if output is None and len(first) >= first_bytes:
                break
            file.write(chunk)
    return bytes(first)


def _kept(federation: Federation) -> Iterator[tuple[Record, Quarantined]]:
    topic = federation.topics.quarantine
    for partition in range(federation.bus.topics()[topic].partitions):
        place = Place(topic, partition)
        for record in records_in(federation.bus, place, 0, federation.bus.end_offset(place) - 1):
            if is_chunk(record.headers):
                continue
            try:
                yield record, decode(record.value or b"", Quarantined)
            except InvalidRecord:
                continue


def _place(text: str) -> tuple[int, int]:
    parts = text.split("/")
    if len(parts) != 2 or not all(part.isdecimal() and len(part) < 19 for part in parts):
        raise UsageError(f"{text!r} is not PARTITION/OFFSET", hint="`refold quarantine list` names them")
    return int(parts[0]), int(parts[1])


def _object(record: Record, said: Quarantined) -> dict[str, Any]:
    return {**to_json(said), "time_ms": record.timestamp_ms}


def _manifest(data: bytes) -> dict[str, Any] | None:
    """Return what a manifest says, unbelieved; None where it is none."""
    try:
        return to_json(decode(data, ClientUpdate))
    except InvalidRecord:
        return None


def _tell(told: dict[str, Any]) -> None:
    payload = told["payload"]
    lines: list[tuple[str, object]] = [
        ("update", f"{told['partition']}/{told['offset']}"),
        ("client", told["client"] or "nobody that could be held to it"),
        ("reasons", ", ".join(told["reasons"])),
        ("detail", told["detail"] or "-"),
        ("when", time_text(told["time_ms"])),
        ("kept", f"{sum(payload['lengths']):,} bytes, {told['record_bytes']:,} of them the manifest"),
    ]
    if told["manifest"] is None:
        lines.append(("manifest", "cannot be read as an update"))
    else:
        body = told["manifest"]["body"]
        lines += [(f"said: {name}", body[name]) for name in SAID]
    for line in facts(lines):
        say(line)
