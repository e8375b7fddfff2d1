"""``refold enroll``: let a key speak for a client."""

from __future__ import annotations

import string
from pathlib import Path

import click

from refold.cli.options import Common, common
from refold.cli.ordering import order
from refold.cli.output import note, say, say_json
from refold.schemas.checks import EnrolClient
from refold.schemas.errors import UsageError
from refold.schemas.keys import SigningKey, key_id, load_public


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
        command, index = order(federation, EnrolClient(name, public), timeout_s=timeout if wait else None)
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
