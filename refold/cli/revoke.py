"""``refold revoke``: let a client's keys count no more."""

from __future__ import annotations

import string

import click

from refold.cli.options import Common, common, patient
from refold.cli.ordering import order
from refold.cli.output import say, say_json
from refold.schemas.checks import RevokeKeys
from refold.schemas.errors import UsageError


@click.command(short_help="Let a client's keys count no more.")
@common
@click.argument("name")
@click.option("--key-id", "key_ids", metavar="ID", multiple=True, help="This key or token alone; may be given again.  [all]")
@click.option("--reason", default="", help="Why; it is kept in the log.")
@patient("the server has taken it")
def revoke(common: Common, name: str, key_ids: tuple[str, ...], reason: str, timeout_s: float | None) -> None:
    """Revoke the keys and unused tokens of the client NAME. Needs the operator's key.

    From then on what they signed is refused, updates that wait for their round among it. What was judged stays so.
    """
    asked = RevokeKeys(name, tuple(_key_id(text) for text in key_ids), reason)
    with common.federation() as federation:
        command, index = order(federation, asked, timeout_s=timeout_s)
    if common.json:
        say_json({"client": name, "key_ids": list(key_ids) or None, "command": command.hex(), "index": index})
        return
    what = "key " + ", ".join(key_ids) if key_ids else "all keys and tokens"
    say(f"{name}  {what}  {'ordered' if index is None else f'revoked by event {index}'}")


def _key_id(text: str) -> bytes:
    if len(text) != 16 or not set(text) <= set(string.hexdigits):
        raise UsageError(f"{text!r} is no key id of 16 hexadecimal digits", hint="`refold show NAME` lists them")
    return bytes.fromhex(text)
