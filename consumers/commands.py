"""Operators' commands: signed, taken once, turned into events of `accepted`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace

import blake3

from refold.bus.clock import Clock
from refold.bus.contract import Bus, Place, Record
from refold.bus.topics import Topics, event_headers
from refold.consumers.orders import obeyed, subject_of
from refold.consumers.roster import Roster
from refold.schemas.canonical import decode, encode
from refold.schemas.checks import ORDERS, Command, Order
from refold.schemas.errors import InvalidRecord, UsageError
from refold.schemas.keys import COMMAND_TAG, SigningKey, key_id, verify
from refold.schemas.policies import ReportModel


class CommandReader:
    """Follows `commands` from where the log says, and refuses what no operator signed."""

    def __init__(self, bus: Bus, topics: Topics, roster: Roster) -> None:
        self._bus = bus
        self._place = Place(topics.commands, 0)
        self._roster = roster
        self._operators = {key_id(public): public for public in roster.genesis.operator_keys}
        self._servers = {key_id(public): public for public in roster.genesis.log_keys}
        self._consumer = bus.consumer()
        self._consumer.assign([self._place])
        self._consumer.seek(self._place, roster.position.commands)
        self.refused = 0
        self.complaints: list[str] = []

    @property
    def next_offset(self) -> int:
        """Offset of the next command not read yet."""
        return self._consumer.position(self._place)

    def poll(self) -> list[object]:
        """Return the events of new commands; what is not a command of an operator is counted and passed over.

        Those of one client are taken one a call, and one that concerns all of them begins a call, since each is decided by what
        the one before it came to. `complaints` then says which commands of an operator cannot be obeyed, and why.
        """
        events: list[object] = []
        seen: set[bytes] = set()
        subjects: set[str] = set()
        self.complaints = []
        for record in self._unread():
            try:
                command, order = self._opened(record.value or b"")
            except InvalidRecord:
                self.refused += 1
                continue
            if command.command_id in self._roster.commands or command.command_id in seen:
                continue
            subject = subject_of(order)
            if subject in subjects or (subjects and not subject):
                self._consumer.seek(self._place, record.offset)
                break
            seen.add(command.command_id)
            caused = self._obeyed(order, command.command_id)
            if caused:
                subjects.add(subject)
            events += caused
        return events

    def _unread(self) -> Iterator[Record]:
        """Yield every command that is there now."""
        end = self._bus.end_offset(self._place)
        while self._consumer.position(self._place) < end:
            yield from self._consumer.poll(0.0)

    def _opened(self, value: bytes) -> tuple[Command, Order]:
        """Return a command that an operator of this federation signed, and what it orders; servers may report on the model.

        Raises
        ------
        InvalidRecord
            It is none.
        """
        command = decode(value, Command)
        public = self._operators.get(command.key_id)
        if public is None and isinstance(decode(command.body), ReportModel):
            public = self._servers.get(command.key_id)
        signed = public is not None and verify(public, COMMAND_TAG, signed_part(command), command.signature)
        if not signed or command.federation != self._roster.genesis.federation:
            raise InvalidRecord("signature", "no operator of this federation signed it")
        order = decode(command.body)
        if not isinstance(order, ORDERS):
            raise InvalidRecord("unknown-type", f"a {type(order).__name__} is no order")
        return command, order

    def _obeyed(self, order: Order, command_id: bytes) -> list[object]:
        try:
            return obeyed(self._roster, order, command_id)
        except UsageError as error:
            self.refused += 1
            self.complaints.append(f"{type(order).__name__}: {error.message}")
            return []

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


def signed_command(federation: str, body: object, key: SigningKey) -> Command:
    """Return a new command, signed by an operator."""
    unsigned = Command(federation, os.urandom(16), encode(body), key.key_id, bytes(64))
    return replace(unsigned, signature=key.sign(COMMAND_TAG, signed_part(unsigned)))


def send_command(bus: Bus, topics: Topics, body: object, key: SigningKey, clock: Clock) -> bytes:
    """Sign a command, write it and return its id; sending the same one twice has no further effect.

    Raises
    ------
    BusError
        It is not known to be written.
    """
    command = signed_command(topics.federation, body, key)
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
