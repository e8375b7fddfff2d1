"""``refold watch``: log files of a node, followed where they lie."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import click

from refold.bus.clock import SystemClock
from refold.cli.options import Common, common
from refold.cli.output import log_to_stderr, note, say, say_json
from refold.consumers.logsight.sight import LogSight, Unusual
from refold.federation import Federation
from refold.producers.heartbeat import HeartbeatThread
from refold.producers.logs.follower import LogFollower
from refold.producers.logs.watch import LogWatch
from refold.producers.reporting import DIGEST_BYTES
from refold.schemas.errors import ConfigurationError, NotFoundError
from refold.schemas.keys import SigningKey
from refold.schemas.updates import WATCHING

INTERVAL_S = 2.0
POLL_S = 0.25
HERE = "this node"


@click.command(short_help="Follow a node's log files and tell what is unusual in them.")
@common
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--name", metavar="CLIENT", help="Send heartbeats with a digest of the logs in this client's name.  [print here]")
@click.option("--key", metavar="FILE", help="The client's private key.  [none, where clients are not identified]")
@click.option("--from-start", is_flag=True, help="Begin with what is in the files.  [from now on]")
@click.option("--until-end", is_flag=True, help="Print what is unusual in the files as they are, and stop. Not with --name.")
def watch(common: Common, files: tuple[str, ...], name: str | None, key: str | None, from_start: bool, until_end: bool) -> None:
    """Follow log files through rotation and truncation, mine them here, and tell what is unusual; the log stays on the node.

    With --name, the digest goes to the federation's health group in heartbeats that count as no sign of life of the client: a
    process of its own beside the client, or on a node that trains nothing. Without it, no federation is needed: what is new and
    tells of trouble, what bursts and how many errors there are is printed. Exit code 1: there was something until the end.
    """
    if name is None:
        if until_end:
            _require_there(files)
        found = _print_here(files, as_json=common.json, from_start=from_start or until_end, until_end=until_end)
        raise click.exceptions.Exit(1 if found else 0)
    if until_end:
        raise click.UsageError("--until-end is for looking here; with --name the files are followed until you stop it")
    log_to_stderr()
    with common.federation() as federation:
        _send(federation, files, name, key, from_start=from_start)


def _require_there(files: Sequence[str]) -> None:
    """Refuse a file that is not there, where nobody waits for it: a mistyped name is no log without trouble."""
    for file in files:
        if not os.path.exists(file):
            raise NotFoundError("no such file", path=file, hint="without --until-end it is waited for")


def _send(federation: Federation, files: Sequence[str], name: str, key: str | None, *, from_start: bool) -> None:
    """Send beats until interrupted, or until there is no right to."""
    if key is None and federation.genesis.identity.required:
        raise ConfigurationError("this federation knows its clients by their keys", hint="give --key FILE, the client's")
    thread = HeartbeatThread(
        federation.bus,
        federation.topics,
        name,
        (0, os.urandom(8)),
        SigningKey.generate() if key is None else SigningKey.load(key),
        interval_s=federation.genesis.policy.heartbeat_ms / 1000,
        properties=(),
        clock=SystemClock(),
        folder=Path(files[0]).resolve().parent,
        activity=WATCHING,
    )
    try:
        for file in files:
            thread.reporter.watch(file, from_start=from_start)
        note(f"watching {', '.join(files)} as {name}")
        while thread.failure is None:
            time.sleep(POLL_S)
        raise thread.failure
    finally:
        thread.close()


def _print_here(files: Sequence[str], *, as_json: bool, from_start: bool, until_end: bool) -> int:
    """Print what is unusual as it comes, and return how much it was."""
    clock, seen = SystemClock(), LogWatch()
    sight, found, begun_s = LogSight(), 0, clock.monotonic_s()
    with ExitStack() as stack:
        followers = [LogFollower(file, seen, from_start=from_start) for file in files]
        for follower in followers:
            stack.callback(follower.close)
        while True:
            is_more = [follower for follower in followers if follower.poll()] != []
            if clock.monotonic_s() - begun_s >= INTERVAL_S or (until_end and not is_more):
                begun_s = clock.monotonic_s()
                found += _tell(seen, sight, begun_s, as_json=as_json)
                if until_end and not is_more:
                    return found
            if not is_more:
                time.sleep(POLL_S)


def _tell(seen: LogWatch, sight: LogSight, now_s: float, *, as_json: bool) -> int:
    """Print what the digests of the moment tell; several, until all that is new was in one."""
    told: list[Unusual] = []
    while True:
        digest = seen.digest(DIGEST_BYTES)
        seen.confirm()
        if digest is None:
            break
        told += sight.take(HERE, digest, now_s)
        if not any(template.is_new for template in digest.templates):
            break
    for one in told:
        say_json(dataclasses.asdict(one)) if as_json else say(one.sentence)
    return len(told)
