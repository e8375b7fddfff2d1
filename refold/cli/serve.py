"""``refold serve``: the server's groups in one process."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from refold.bus.contract import Consumer, Place
from refold.cli.describe import one_line
from refold.cli.options import Common, common
from refold.cli.output import note, say, say_json, table
from refold.cli.status import group_status
from refold.consumers.server import GROUPS
from refold.federation import Federation
from refold.producers.lineage import LineageReader
from refold.schemas.canonical import decode
from refold.schemas.checks import Alert
from refold.schemas.errors import InvalidRecord
from refold.schemas.events import FederationEnded, RoundCommitted

LOOK_EVERY_S = 0.2


@click.command(short_help="Run the server: all groups, or those named.")
@common
@click.argument("groups", nargs=-1, metavar="[GROUP]...", type=click.Choice(GROUPS))
@click.option("--until-end", is_flag=True, help="Stop once the federation has ended.")
@click.option("--member", default="", metavar="NAME", help="What this process calls itself, stable over restarts.")
@click.option("--status", is_flag=True, help="Say who holds each group's place and what it has still to do, and stop.")
def serve(common: Common, groups: tuple[str, ...], until_end: bool, member: str, status: bool) -> None:
    """Run the groups consistency, detection, aggregation and snapshots, or those named, until SIGINT or SIGTERM.

    Any number of servers may run at once: consistency shares its work, of the others one member is active. Tells of rounds and
    alerts on stderr.
    """
    with common.federation() as federation:
        if status:
            _show_status(federation, groups or GROUPS, as_json=common.json)
            return
        _log_to_stderr()
        watch = Watch(federation, from_end=not until_end)
        server = federation.serve(groups or GROUPS, member=member)
        try:
            with _stopped_by_signals() as stopped, server:
                note(f"serving {federation.name} ({', '.join(groups or GROUPS)}) as {server.member}")
                while not stopped.is_set() and not server.wait(LOOK_EVERY_S):
                    watch.tell()
                    if until_end and watch.has_ended:
                        break
        finally:
            watch.close()
        note("stopped")


class Watch:
    """Tells on stderr what happens: rounds, the end, alerts."""

    def __init__(self, federation: Federation, *, from_end: bool) -> None:
        self._rounds = LineageReader(federation.bus, federation.topics)
        self._rounds.read_to_end()
        self._alerts = _from_now(federation)
        self.has_ended = self._rounds.lineage.ended is not None
        if from_end and self.has_ended:
            note(f"{federation.name} has ended; serving on for late readers")

    def tell(self) -> None:
        """Tell what is new."""
        for entry in self._rounds.poll(0.0):
            for event in entry.events:
                if isinstance(event, RoundCommitted | FederationEnded):
                    note(_told(event))
                self.has_ended = self.has_ended or isinstance(event, FederationEnded)
        for record in self._alerts.poll(0.0):
            try:
                note(f"alert: {one_line(decode(record.value or b'', Alert))}")
            except InvalidRecord:
                continue

    def close(self) -> None:
        """Let go of the readers."""
        self._rounds.close()
        self._alerts.close()


def _told(event: Any) -> str:
    return f"ended: {one_line(event)}" if isinstance(event, FederationEnded) else one_line(event)


def _from_now(federation: Federation) -> Consumer:
    consumer = federation.bus.consumer()
    topic = federation.topics.alerts
    places = [Place(topic, partition) for partition in range(federation.bus.topics()[topic].partitions)]
    consumer.assign(places)
    for place in places:
        consumer.seek(place, federation.bus.end_offset(place))
    return consumer


@contextmanager
def _stopped_by_signals() -> Iterator[threading.Event]:
    """Turn SIGINT and SIGTERM into an event, so that members leave their groups; a second one ends the process."""
    stopped = threading.Event()

    def stop(number: int, _frame: object) -> None:
        if stopped.is_set():
            sys.exit(128 + number)
        stopped.set()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _log_to_stderr() -> None:
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)


def _show_status(federation: Federation, groups: tuple[str, ...], *, as_json: bool) -> None:
    found = group_status(federation, groups)
    if as_json:
        for status in found:
            say_json(status)
        return
    rows = [(s["group"], s["to_do"], s["of"], s["last_writer"] or "-", s["last_time"] or "-") for s in found]
    for line in table(("group", "to do", "of", "last writer", "when"), rows):
        say(line)
