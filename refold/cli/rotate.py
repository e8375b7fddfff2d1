"""``refold rotate``: replace a client's key by a new one, at the client."""

from __future__ import annotations

import click

from refold.cli.options import Common, common
from refold.cli.ordering import asking_for_a_key
from refold.cli.output import note, say, say_json


@click.command(short_help="Replace a client's key by a new one.")
@common
@click.argument("name")
@click.option("--key", required=True, metavar="FILE", help="The client's present private key.")
@click.option("--new-key", required=True, metavar="FILE", help="The file for the new one; made if it is not there.")
@click.option("--timeout", type=float, default=60.0, show_default=True, help="Seconds to wait for the server.")
def rotate(common: Common, name: str, key: str, new_key: str, timeout: float) -> None:
    """Replace the key of the client NAME, which must not run meanwhile. No operator is needed: the present key vouches.

    What the outbox holds is sent first and stays valid; what the old key signs from then on is refused. After an interruption
    give the same command again.
    """
    with common.federation() as federation, asking_for_a_key():
        made = federation.rotate(name, key, new_key, timeout_s=timeout)
    if common.json:
        say_json({"client": name, "public_key": made.public.hex(), "key_id": made.key_id.hex()})
        return
    say(f"{name}  key {made.key_id.hex()}  enrolled; its private half is {new_key}")
    note(f"{key} counts no more: delete it, and start the client with --key {new_key}")
