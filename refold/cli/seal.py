"""``refold seal`` and ``refold erase``: a client's sealing key, made and destroyed."""

from __future__ import annotations

import time
from contextlib import closing
from typing import Any

import click

from refold.bus.ledger import LedgerReader
from refold.cli.options import Common, common, patient
from refold.cli.ordering import interruptible
from refold.cli.output import note, say, say_json
from refold.federation import Federation
from refold.schemas.errors import NotFoundError, TryAgainError
from refold.schemas.events import ClientErased, ClientKeyed
from refold.schemas.sealing import sealing_key_id

POLL_S = 0.2


@click.command(short_help="Let a client encrypt its updates.")
@common
@click.argument("name", metavar="CLIENT")
@patient("the client can read it")
def seal(common: Common, name: str, timeout_s: float | None) -> None:
    """Let CLIENT encrypt its updates from now on, to a key that is made for it here. Needs the operator's key.

    The private half lies in the key folder, under sealing/. Every machine that serves needs a copy of it. A client that has a
    key may get a new one; what was sealed to the old one still opens.
    """
    with common.federation() as federation, interruptible() as sending, closing(_reader(federation)) as reader:
        command = sending.send(lambda: federation.seal(name))
        event = None if timeout_s is None else _wait(federation, reader, command, timeout_s)
    if common.json:
        key = sealing_key_id(event.public_key).hex() if event is not None else None
        say_json({"client": name, "command": command.hex(), "key_id": key})
    else:
        say(f"{name}  {'ordered' if event is None else f'seals to key {sealing_key_id(event.public_key).hex()}'}")


@click.command(short_help="Erase what a client sent encrypted.")
@common
@click.argument("name", metavar="CLIENT")
@click.option("--reason", default="erased by the operator", help="Kept in the log.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--timeout", type=float, default=60.0, show_default=True, help="Seconds to wait.")
def erase(common: Common, name: str, reason: str, yes: bool, timeout: float) -> None:
    """Destroy the keys of CLIENT, so that nobody can read again what it sent encrypted. Cannot be undone.

    The log, its rounds and every rebuild stay as they are; rounds with this client's updates can no longer be derived again.
    What it sent before it had a key, and copies of the key folder elsewhere, are not touched: run this on every machine that
    serves. The model keeps what it learned.
    """
    then = "servers destroy their own copies; give the same command again to destroy those here"
    with common.federation() as federation, interruptible(then=then) as sending:
        good, void = _keys(federation, name)
        if not good and not void:
            raise NotFoundError("this client has no sealing key", client=name, hint="`refold log` shows who was given one")
        if good and not yes:
            click.confirm(f"destroy {len(good)} keys of {name}? what it sent cannot be read again", abort=True, err=True)
        erased = void
        if good:
            with closing(_reader(federation)) as reader:
                command = sending.send(lambda: federation.erase(name, reason))
                erased = (*void, *_wait(federation, reader, command, timeout).key_ids)
        destroyed = federation.keyring.sealing.destroy(name, erased)
    if common.json:
        say_json({"client": name, "erased": [key.hex() for key in erased], "destroyed_here": destroyed})
    else:
        say(f"{name}  erased, {len(erased)} keys void, {destroyed} destroyed by this command")
        note("servers destroy their own copies; run this again on machines that hold keys and do not serve")


def _keys(federation: Federation, name: str) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
    """Return the ids of a client's good keys, and of those that are void in `rounds` already."""
    good: list[bytes] = []
    void: list[bytes] = []
    for event, _ in federation.log("rounds"):
        if isinstance(event, ClientKeyed) and event.client == name:
            good.append(sealing_key_id(event.public_key))
        elif isinstance(event, ClientErased) and event.client == name:
            void += event.key_ids
    return tuple(key for key in good if key not in void), tuple(void)


def _reader(federation: Federation) -> LedgerReader:
    return LedgerReader(federation.bus, federation.topics.rounds)


def _wait(federation: Federation, reader: LedgerReader, command: bytes, timeout_s: float) -> Any:
    """Return the event of `rounds` that a command caused: by then every round before it is made.

    Raises
    ------
    TryAgainError
        It is not there in time; the command stays where it is.
    """
    deadline_s = time.monotonic() + timeout_s
    while True:
        for entry in reader.poll(POLL_S):
            for event in entry.events:
                if isinstance(event, ClientKeyed | ClientErased) and event.command_id == command:
                    return event
        if time.monotonic() > deadline_s and reader.next_offset >= federation.bus.end_offset(reader.place):
            hint = "it is written and will be taken; is a server running? start one with `refold serve`"
            raise TryAgainError(
                f"no server took the command within {timeout_s:g} s", topic=federation.topics.commands, hint=hint
            )
