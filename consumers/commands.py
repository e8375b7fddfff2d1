"""Operators' commands: signed, taken once, turned into events of `accepted`."""

from __future__ import annotations

import os
from collections.abc import Iterator

import blake3

from refold.bus.clock import Clock
from refold.bus.contract import Bus, Place, Record
from refold.bus.topics import Topics, event_headers
from refold.consumers.roster import Roster
from refold.schemas.canonical import decode, encode
from refold.schemas.checks import Command, EndFederation, EnrolClient
from refold.schemas.errors import InvalidRecord
from refold.schemas.events import ClientEnrolled, FederationEnded
from refold.schemas.keys import COMMAND_TAG, SigningKey, key_id, verify


class CommandReader:
    """Follows `commands` from where the log says, and refuses what no operator signed."""

    def __init__(self, bus: Bus, topics: Topics, roster: Roster) -> None:
        self._bus = bus
        self._place = Place(topics.commands, 0)
        self._roster = roster
        self._operators = {key_id(public): public for public in roster.genesis.operator_keys}
        self._consumer = bus.consumer()
        self._consumer.assign([self._place])
        self._consumer.seek(self._place, roster.position.commands)
        self.refused = 0

    @property
    def next_offset(self) -> int:
        """Offset of the next command not read yet."""
        return self._consumer.position(self._place)

    def poll(self) -> list[object]:
        """Return the events of new commands; what is not a command of an operator is counted and passed over."""
        events: list[object] = []
        seen: set[bytes] = set()
        for record in self._unread():
            try:
                command = decode(record.value or b"", Command)
                new = self._events_of(command) if command.command_id not in seen else []
            except InvalidRecord:
                self.refused += 1
                continue
            if new and isinstance(new[0], FederationEnded) and any(isinstance(event, FederationEnded) for event in events):
                continue
            seen.add(command.command_id)
            events += new
        return events

    def _unread(self) -> Iterator[Record]:
        """Yield every command that is there now."""
        end = self._bus.end_offset(self._place)
        while self._consumer.position(self._place) < end:
            yield from self._consumer.poll(0.0)

    def _events_of(self, command: Command) -> list[object]:
        public = self._operators.get(command.key_id)
        signed = public is not None and verify(public, COMMAND_TAG, signed_part(command), command.signature)
        if not signed or command.federation != self._roster.genesis.federation:
            raise InvalidRecord("signature", "no operator of this federation signed it")
        if command.command_id in self._roster.commands:
            return []
        body: EnrolClient | EndFederation = decode(command.body, EnrolClient, EndFederation)
        if isinstance(body, EnrolClient):
            return [ClientEnrolled(body.client, body.public_key, command.command_id)]
        return [] if self._roster.ended else [FederationEnded(self._roster.closed, body.reason)]

    def follow(self, roster: Roster) -> None:
        """Follow the log."""
        self._roster = roster

    def close(self) -> None:
        """Let go of the consumer."""
        self._consumer.close()


def signed_part(command: Command) -> bytes:
    """Return the digest that an operator signs: federation, id and body."""
    hasher = blake3.blake3(derive_key_context="refold 2026 command")
    for part in (command.federation.encode(), command.command_id, command.body):
        hasher.update(len(part).to_bytes(8, "little") + part)
    return hasher.digest()


def send_command(bus: Bus, topics: Topics, body: object, key: SigningKey, clock: Clock) -> bytes:
    """Sign a command, write it and return its id; sending the same one twice has no further effect.

    Raises
    ------
    BusError
        It is not known to be written.
    """
    unsigned = Command(topics.federation, os.urandom(16), encode(body), key.key_id, bytes(64))
    command = Command(
        unsigned.federation, unsigned.command_id, unsigned.body, key.key_id, key.sign(COMMAND_TAG, signed_part(unsigned))
    )
    headers = event_headers(
        type(body).__name__,
        source=topics.commands,
        subject="operator",
        identity=command.command_id.hex(),
        time_ms=clock.wall_ms(),
    )
    with bus.producer() as producer:
        producer.send(topics.commands, encode(command), partition=0, headers=headers)
        producer.flush()
    return command.command_id
