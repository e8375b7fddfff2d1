"""``refold enroll``: let a key speak for a client, or hand out a token by which the client enrols one itself."""

from __future__ import annotations

import string
import sys
from pathlib import Path

import click

from refold.cli.options import Common, common
from refold.cli.ordering import asking_for_a_key, order, require_order
from refold.cli.output import note, say, say_json
from refold.enrolling import new_token
from refold.producers.enrolment import read_token, token_text
from refold.schemas.checks import AdmitToken, EnrolClient
from refold.schemas.errors import UsageError
from refold.schemas.keys import SigningKey, key_id, load_public


@click.command(short_help="Let a key speak for a client.")
@common
@click.argument("name", required=False)
@click.option("--key", metavar="FILE|HEX", help="The client's public key: PEM, 64 hexadecimal digits, or a file with either.")
@click.option("--new-key", metavar="FILE", help="Make a private key in this file, readable by its owner only, and enrol it.")
@click.option("--token", is_flag=True, help="Print a one-time token by which the client enrols a key by itself.")
@click.option("--expires", type=click.IntRange(1), metavar="ROUNDS", help="For how many rounds the token is taken.  [for ever]")
@click.option("--redeem", metavar="TOKEN", help="At the client: enrol the --new-key by this token; - reads it from stdin.")
@click.option("--wait/--no-wait", default=True, help="Wait until the server has taken it.  [wait]")
@click.option("--timeout", type=float, default=15.0, show_default=True, help="Seconds to wait.")
def enroll(
    common: Common,
    name: str | None,
    key: str | None,
    new_key: str | None,
    token: bool,
    expires: int | None,
    redeem: str | None,
    wait: bool,
    timeout: float,
) -> None:
    """Let a key speak for the client NAME from now on. Needs the operator's key, but for --redeem.

    A client can have several keys; each stays valid until it is revoked.
    """
    if redeem is not None:
        _redeem(common, name, sys.stdin.readline() if redeem == "-" else redeem, new_key, timeout)
        return
    if name is None:
        raise UsageError("no client is named", hint="`refold enroll NAME` and one of --key, --new-key and --token")
    if (key is not None) + (new_key is not None) + token != 1:
        raise UsageError("give one of --key, --new-key and --token")
    timeout_s = timeout if wait else None
    if token:
        _hand_out(common, name, expires, timeout_s)
        return
    with common.federation() as federation:
        federation.keyring.operator()
        require_order(EnrolClient(name, bytes(32)))  # Before a key is made that nobody could be enrolled with.
        public = _new(Path(new_key)) if new_key is not None else _given(key or "")
        command, index = order(federation, EnrolClient(name, public), timeout_s=timeout_s)
    if common.json:
        said = {"client": name, "public_key": public.hex(), "key_id": key_id(public).hex()}
        say_json({**said, "command": command.hex(), "index": index})
    else:
        say(f"{name}  key {key_id(public).hex()}  {'ordered' if index is None else f'enrolled by event {index}'}")


def _hand_out(common: Common, name: str, expires: int | None, timeout_s: float | None) -> None:
    """Print a token: it is nowhere else, and not shown again."""
    with common.federation() as federation:
        made, public = new_token(federation, name, expires)
        command, index = order(federation, AdmitToken(name, public, made.last_round), timeout_s=timeout_s)
    if common.json:
        said = {
            "client": name,
            "token": token_text(made),
            "key_id": key_id(public).hex(),
            "last_round": made.last_round or None,
        }
        say_json({**said, "command": command.hex(), "index": index})
        return
    say(token_text(made))
    until = f", up to round {made.last_round}" if made.last_round else ""
    note(f"for {name}, once{until}; at the client: `refold enroll --redeem TOKEN --new-key {name}.pem`")
    note(f"whoever has it can enrol; `refold revoke {name} --key-id {key_id(public).hex()}` cancels it")


def _redeem(common: Common, name: str | None, text: str, new_key: str | None, timeout_s: float) -> None:
    read = read_token(text)
    if new_key is None:
        raise UsageError("--redeem needs --new-key: the file for the client's key")
    if name not in (None, read.client):
        raise UsageError(f"the token is for the client {read.client!r}")
    with common.federation() as federation, asking_for_a_key():
        key = federation.redeem(text, new_key, timeout_s=timeout_s)
    if common.json:
        say_json({"client": read.client, "public_key": key.public.hex(), "key_id": key.key_id.hex()})
    else:
        say(f"{read.client}  key {key.key_id.hex()}  enrolled; its private half is {new_key}")


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
