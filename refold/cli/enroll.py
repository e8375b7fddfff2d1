"""``refold enroll``: let a key speak for a client."""

from __future__ import annotations

import string
import time
from pathlib import Path

import click

from refold.bus.ledger import LedgerReader
from refold.cli.options import Common, common
from refold.cli.output import note, say, say_json
from refold.federation import Federation
from refold.schemas.errors import TryAgainError, UsageError
from refold.schemas.events import ClientEnrolled
from refold.schemas.keys import SigningKey, key_id, load_public

POLL_S = 0.2


@click.command(short_help="Let a key speak for a client.")
@common
@click.argument("name")
@click.option("--key", metavar="FILE|HEX", help="The client's public key: PEM, 64 hexadecimal digits, or a file with either.")
@click.option(
    "--new-key", metavar="FILE", help="Make a private key in this file, readable by its owner only, and take its public half."
)
@click.option("--wait/--no-wait", default=True, help="Wait until the server has taken it.  [wait]")
@click.option("--timeout", type=float, default=15.0, show_default=True, help="Seconds to wait.")
def enroll(common: Common, name: str, key: str | None, new_key: str | None, wait: bool, timeout: float) -> None:
    """Let a key speak for the client NAME from now on. Needs the operator's key.

    A client can have several keys; each stays valid.
    """
    if (key is None) == (new_key is None):
        raise UsageError("give either --key or --new-key")
    with common.federation() as federation:
        federation.keyring.operator()
        public = _new(Path(new_key)) if new_key is not None else _given(key or "")
        reader = LedgerReader(federation.bus, federation.topics.accepted)
        try:
            command = federation.enroll(name, public)
            index = _wait(federation, reader, command, timeout) if wait else None
        finally:
            reader.close()
    if common.json:
        said = {"client": name, "public_key": public.hex(), "key_id": key_id(public).hex()}
        say_json({**said, "command": command.hex(), "index": index})
    else:
        say(f"{name}  key {key_id(public).hex()}  {'ordered' if index is None else f'enrolled by event {index}'}")


def _new(path: Path) -> bytes:
    if path.exists():
        raise UsageError(
            "there is a file of this name already", path=path, hint="enrol that key with --key, or name another file"
        )
    signing = SigningKey.generate()
    signing.save(path)
    note(f"made {path}; it is the client's secret: move it there, and keep no copy")
    return signing.public


def _given(text: str) -> bytes:
    if len(text) == 64 and set(text) <= set(string.hexdigits) and not Path(text).exists():
        return bytes.fromhex(text)
    return load_public(text)


def _wait(federation: Federation, reader: LedgerReader, command: bytes, timeout_s: float) -> int:
    """Return the index of the enrolment in `accepted`.

    Raises
    ------
    TryAgainError
        Nobody took the command in time; it stays where it is.
    """
    deadline_s = time.monotonic() + timeout_s
    while True:
        for entry in reader.poll(POLL_S):
            for index, event in entry.indexed():
                if isinstance(event, ClientEnrolled) and event.command_id == command:
                    return index
        at_end = reader.next_offset >= federation.bus.end_offset(reader.place)
        if at_end and time.monotonic() > deadline_s:
            hint = "it is written and will be taken; is a server running? start one with `refold serve`"
            raise TryAgainError(
                f"no server took the enrolment within {timeout_s:g} s", topic=federation.topics.commands, hint=hint
            )
