"""Enrolments: each follows from a command that an operator signed."""

from __future__ import annotations

from collections.abc import Iterator

from refold.bus.contract import Bus, Place
from refold.bus.ranges import records_in
from refold.bus.topics import Topics
from refold.consumers.audit.findings import STANDING, Finding
from refold.consumers.commands import signed_part
from refold.schemas.canonical import decode
from refold.schemas.checks import Command, EndFederation, EnrolClient
from refold.schemas.errors import InvalidRecord
from refold.schemas.events import ClientEnrolled, Genesis
from refold.schemas.keys import COMMAND_TAG, key_id, verify

Enrolment = tuple[int, int, ClientEnrolled]
"""Index and offset in `accepted`, and the event."""


def audit_enrolments(bus: Bus, topics: Topics, genesis: Genesis, enrolments: list[Enrolment]) -> Iterator[Finding]:
    """Yield the enrolments that no operator ordered."""
    ordered = _signed_enrolments(bus, topics, genesis)
    for index, offset, event in enrolments:
        if ordered.get(event.command_id) != (event.client, event.public_key):
            what = f"{event.client!r} was enrolled without a command that an operator signed"
            hint = "whoever wrote `accepted` let this key in by themselves"
            yield Finding(STANDING, what, hint, topics.accepted, 0, offset, index, event.client)


def _signed_enrolments(bus: Bus, topics: Topics, genesis: Genesis) -> dict[bytes, tuple[str, bytes]]:
    operators = {key_id(public): public for public in genesis.operator_keys}
    place = Place(topics.commands, 0)
    found: dict[bytes, tuple[str, bytes]] = {}
    for record in records_in(bus, place, bus.begin_offset(place), bus.end_offset(place) - 1):
        try:
            command = decode(record.value or b"", Command)
            body: EnrolClient | EndFederation = decode(command.body, EnrolClient, EndFederation)
        except InvalidRecord:
            continue
        public = operators.get(command.key_id)
        signed = public is not None and verify(public, COMMAND_TAG, signed_part(command), command.signature)
        if signed and command.federation == genesis.federation and isinstance(body, EnrolClient):
            found.setdefault(command.command_id, (body.client, body.public_key))
    return found
