"""``refold serve``: the server's groups in one process."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import click

from refold.bus.clock import SystemClock
from refold.bus.contract import Consumer, Place
from refold.cli.describe import one_line
from refold.cli.options import Common, common
from refold.cli.output import log_to_stderr, note, say, say_json, table
from refold.cli.status import GroupStatus, StatusReader
from refold.consumers.delivery import Command, Sink, Webhook
from refold.consumers.health import HealthSettings
from refold.consumers.memory import collect_seldom, limit_arenas
from refold.consumers.monitoring.policy import HealthPolicy
from refold.consumers.server import GROUPS, Server
from refold.consumers.server_heartbeat import ServerHeartbeatThread
from refold.federation import Federation
from refold.producers.lineage import LineageReader
from refold.schemas.canonical import decode
from refold.schemas.checks import Alert
from refold.schemas.errors import InvalidRecord, UsageError
from refold.schemas.events import FederationEnded, RoundCommitted
from refold.schemas.identity import INSECURE
from refold.schemas.keys import log_key

LOOK_EVERY_S = 0.2


@click.command(short_help="Run the server: all groups, or those named.")
@common
@click.argument("groups", nargs=-1, metavar="[GROUP]...", type=click.Choice(GROUPS))
@click.option("--until-end", is_flag=True, help="Stop once the federation has ended.")
@click.option("--member", default="", metavar="NAME", help="What this process calls itself, stable over restarts.")
@click.option("--status", is_flag=True, help="Say who holds each group's place and what it has still to do, and stop.")
@click.option("--watch", type=click.FloatRange(min=0.1), metavar="SECONDS", help="Show the status again and again, with rates.")
@click.option("--metrics", metavar="[HOST:]PORT", help="Serve /metrics, /livez and /readyz there.")
@click.option("--webhook", metavar="URL", multiple=True, help="Post every alert to this address as JSON; may be repeated.")
@click.option("--alert-command", metavar="COMMAND", multiple=True, help="Run this for every alert, which it reads as JSON.")
@click.option("--health", metavar="NAME=VALUE", multiple=True, help="How nodes are watched; docs/OPERATIONS.md lists it.")
@click.option("--even-incomplete", is_flag=True, help="Serve a copy that was cut off, because its source is lost.")
@click.option("--evaluate", metavar="COMMAND", help="Prints what {model} is worth, for each newest round; docs/RECOVERY.md.")
def serve(
    common: Common,
    groups: tuple[str, ...],
    until_end: bool,
    member: str,
    status: bool,
    watch: float | None,
    metrics: str | None,
    webhook: tuple[str, ...],
    alert_command: tuple[str, ...],
    health: tuple[str, ...],
    even_incomplete: bool,
    evaluate: str | None,
) -> None:
    """Run the groups consistency, detection, aggregation, snapshots and health, or those named, until SIGINT or SIGTERM.

    Any number of servers may run at once: consistency shares its work, of the others one member is active. Tells of rounds and
    alerts on stderr.
    """
    if evaluate == "":
        raise UsageError("--evaluate names no command", hint="for instance `python evaluate.py {model}`, or leave it out")
    with common.federation() as federation:
        if status or watch is not None:
            if not federation.genesis.identity.required:
                note(f"{federation.name} is {INSECURE}")
            _watch_status(federation, groups or GROUPS, watch, as_json=common.json)
            return
        log_to_stderr()
        limit_arenas()
        collect_seldom()
        watching = _health_settings(federation, health, webhook, alert_command)
        server = federation.serve(
            groups or GROUPS, member=member, even_incomplete=even_incomplete, health=watching, evaluate=evaluate or ""
        )
        news = Watch(federation, from_end=not until_end)
        try:
            with stopped_by_signals() as stopped, server, _beating(federation, server), _measured(federation, server, metrics):
                note(f"serving {federation.name} ({', '.join(groups or GROUPS)}) as {server.member}")
                while not stopped.is_set() and not server.wait(LOOK_EVERY_S):
                    news.tell()
                    if until_end and news.has_ended:
                        break
        finally:
            news.close()
        note("stopped")


def _health_settings(
    federation: Federation, words: tuple[str, ...], webhooks: tuple[str, ...], commands: tuple[str, ...]
) -> HealthSettings:
    """Return how nodes are watched; a policy that bans needs the operator's key here."""
    policy = HealthPolicy.of(words)
    sinks: list[Sink] = [*map(Webhook, webhooks), *map(Command.of, commands)]
    return HealthSettings(policy, federation.keyring.operator() if policy.ban else None, tuple(sinks))


@contextmanager
def _beating(federation: Federation, server: Server) -> Iterator[None]:
    """Let the server have heartbeats of its own."""
    genesis = federation.genesis
    thread = ServerHeartbeatThread(
        federation.bus,
        federation.topics,
        server.member,
        server.members,
        log_key(federation.keyring.secret(genesis.secret_digest)) if genesis.log_keys else None,
        holds=server.holds,
        interval_s=genesis.policy.heartbeat_ms / 1000,
        clock=SystemClock(),
        folder=Path.cwd(),
    )
    try:
        yield
        thread.leave()
    finally:
        thread.close()


def _measured(federation: Federation, server: Server, where: str | None) -> AbstractContextManager[object]:
    if where is None:
        return nullcontext()
    from refold.cli.metrics import MetricsServer, address

    host, port = address(where)
    serving = MetricsServer(federation, server, host, port)
    note(f"metrics at http://{host}:{serving.port}/metrics")
    return serving


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
def stopped_by_signals() -> Iterator[threading.Event]:
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


def _watch_status(federation: Federation, groups: tuple[str, ...], every_s: float | None, *, as_json: bool) -> None:
    """Show the status once, or every so often until interrupted."""
    reader = StatusReader(federation)
    try:
        while True:
            _show_status(reader.read(groups), as_json=as_json, clear=every_s is not None and sys.stdout.isatty())
            if every_s is None:
                return
            time.sleep(every_s)
    finally:
        reader.close()


def _show_status(found: Sequence[GroupStatus], *, as_json: bool, clear: bool) -> None:
    now_ms = time.time_ns() // 1_000_000
    if as_json:
        for status in found:
            say_json(status.to_json(now_ms))
        return
    if clear:
        click.clear()
    rows = [(s.group, s.to_do, s.of, _rate(s.per_s), ago(s.idle_s(now_ms)), ", ".join(s.members) or "-") for s in found]
    for line in table(("group", "to do", "of", "in/s", "last progress", "last at work"), rows):
        say(line)
    behind = [(f"{p.topic}/{p.partition}", p.to_do, p.member or "-") for s in found if len(s.places) > 1 for p in s.places]
    behind = [row for row in behind if row[1]]
    for line in table(("place", "to do", "last at work"), behind) if behind else ():
        say(line)


def _rate(per_s: float | None) -> str:
    return "-" if per_s is None else f"{per_s:.1f}"


def ago(idle_s: float | None) -> str:
    """Return a time that has passed in the unit that reads best."""
    if idle_s is None:
        return "-"
    for unit, seconds in (("d", 86_400), ("h", 3600), ("min", 60)):
        if idle_s >= 2 * seconds:
            return f"{idle_s / seconds:.0f} {unit} ago"
    return f"{idle_s:.0f} s ago"
