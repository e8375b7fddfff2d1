"""Commands of an operator, from the command line: checked first, then sent, then waited for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import click

from refold.bus.contract import Place
from refold.bus.ledger import LedgerReader
from refold.cli.output import note
from refold.consumers.orders import obeyed
from refold.federation import Federation
from refold.schemas.canonical import encode
from refold.schemas.checks import Order
from refold.schemas.errors import InvalidRecord, TryAgainError, UsageError

POLL_S = 0.2


class Sending:
    """What sending a command has come to, as it is said to whoever interrupts it."""

    def __init__(self) -> None:
        self.said = "nothing was sent"
        self.is_begun = False

    def send(self, command: Callable[[], bytes]) -> bytes:
        """Call what sends the command; return its id."""
        self.is_begun = True
        self.said = "stopped in the middle of sending: a server may get the command or not; `refold log` shows it if so"
        command_id = command()
        self.said = "not waited for any longer: the command is written, and a server will take it; `refold log` shows when"
        return command_id


@contextmanager
def interruptible(*, then: str = "") -> Iterator[Sending]:
    """Say to whoever interrupts the block, or says no, how things stand with its command.

    Parameters
    ----------
    then
        What is left to do once the command was sent.
    """
    sending = Sending()
    try:
        yield sending
    except (KeyboardInterrupt, click.Abort):
        note(sending.said)
        if sending.is_begun and then:
            note(then)
        raise


@contextmanager
def asking_for_a_key() -> Iterator[None]:
    """Say to whoever interrupts a client's request for a key what may have come of it."""
    try:
        yield
    except KeyboardInterrupt:
        note("not waited for any longer: the new key may be enrolled all the same; the same command, given again, says so")
        raise


def order(federation: Federation, asked: Order, *, timeout_s: float | None) -> tuple[bytes, int | None]:
    """Send a command; return its id and the index of the event that it caused, None where nobody waits for it.

    Raises
    ------
    UsageError
        It cannot be obeyed, as far as the log says now.
    TryAgainError
        Nobody took it in time; it stays where it is.
    """
    federation.keyring.operator()
    require_order(asked)
    require_obeyable(federation, asked)
    with interruptible() as sending, closing(LedgerReader(federation.bus, federation.topics.accepted)) as reader:
        command = sending.send(lambda: federation.command(asked))
        return command, None if timeout_s is None else _wait(federation, reader, command, timeout_s)


def require_order(asked: Order) -> None:
    """Refuse words that no command can hold, such as an empty name.

    Raises
    ------
    UsageError
    """
    try:
        encode(asked)
    except InvalidRecord as error:
        raise UsageError(error.message, hint="names are 1 to 200 characters that print, whole numbers of 64 bits") from error


def require_obeyable(federation: Federation, asked: Order) -> None:
    """Refuse what detection would refuse; while commands wait for it, nobody knows what it will make of this one.

    Raises
    ------
    UsageError
    """
    roster = federation.roster()
    if federation.bus.end_offset(Place(federation.topics.commands, 0)) <= roster.position.commands:
        obeyed(roster, asked, bytes(16))


def _wait(federation: Federation, reader: LedgerReader, command: bytes, timeout_s: float) -> int:
    deadline_s = time.monotonic() + timeout_s
    while True:
        for entry in reader.poll(POLL_S):
            for index, event in entry.indexed():
                if getattr(event, "command_id", None) == command:
                    return index
        at_end = reader.next_offset >= federation.bus.end_offset(reader.place)
        if at_end and time.monotonic() > deadline_s:
            hint = "it is written and will be taken; is a server running? start one with `refold serve`"
            raise TryAgainError(
                f"no server took the command within {timeout_s:g} s", topic=federation.topics.commands, hint=hint
            )
