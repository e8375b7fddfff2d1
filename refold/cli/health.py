"""``refold health``: the state of every node, as the health group has it."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import click

from refold.bus.contract import Place, partition_for
from refold.bus.ranges import records_in
from refold.cli.options import Common, common
from refold.cli.output import facts, number_of, say, say_json, table, time_text
from refold.cli.serve import ago
from refold.consumers.monitoring.kinds import KINDS
from refold.consumers.monitoring.servers import PREFIX, is_server
from refold.consumers.reported import ReportReader, follow_reports
from refold.federation import Federation
from refold.schemas.canonical import decode
from refold.schemas.checks import Alert
from refold.schemas.errors import InvalidRecord, NotFoundError
from refold.schemas.health import DEAD, HEALTHY, LEFT, STATES, NodeHealth
from refold.schemas.updates import Heartbeat, ServerHeartbeat

STALE = "stale"
WORST_FIRST = {state: place for place, state in enumerate((DEAD, "suspect", "degraded", "rejoined", HEALTHY, LEFT))}
LOOK_BACK = 20_000
"""Records of one partition of `health` and `alerts` that are looked through for one node."""


@click.command(short_help="Say how every node is, or one, and why.")
@common
@click.argument("node", required=False)
@click.option("--watch", type=click.FloatRange(min=0.1), metavar="SECONDS", help="Show it again and again.")
def health(common: Common, node: str | None, watch: float | None) -> int:
    """Print every node's state with its cause, worst first, or all that is known of one NODE.

    States are healthy, degraded, suspect, dead, rejoined and left. While no health group works, what it said last is shown as
    stale: then nobody knows. Exit code 1 if a node is not well, or nobody knows.
    """
    with common.federation() as federation:
        reader, beats = follow_reports(federation.bus, federation.topics, federation.genesis)
        with beats:
            while True:
                if node is not None:
                    _show_node(federation, _found(reader, node), is_stale=_is_stale(reader), as_json=common.json)
                else:
                    _show_all(reader, as_json=common.json, clear=watch is not None and sys.stdout.isatty())
                if watch is None:
                    return int(_is_stale(reader) or any(one.state not in (HEALTHY, "rejoined", LEFT) for one in reader.nodes()))
                time.sleep(watch)
                for records in iter(lambda: beats.poll(0.0), []):
                    reader.take(records)


def _is_stale(reader: ReportReader) -> bool:
    return reader.is_stale(time.time_ns() // 1_000_000)


def _found(reader: ReportReader, name: str) -> NodeHealth:
    found = next((node for node in reader.nodes() if node.client == name), None)
    if found is None:
        raise NotFoundError(f"nothing is known of a node {name!r}", hint="`refold health` lists those that are known")
    return found


def _show_all(reader: ReportReader, *, as_json: bool, clear: bool) -> None:
    nodes, is_stale = sorted(reader.nodes(), key=lambda node: (WORST_FIRST.get(node.state, 9), node.client)), _is_stale(reader)
    if as_json:
        for node in nodes:
            say_json(node_json(node, is_stale=is_stale))
        return
    if clear:
        click.clear()
    newest = reader.newest
    if newest is None:
        say("no health group has reported yet; `refold serve` runs one")
        return
    now_ms = time.time_ns() // 1_000_000
    if is_stale:
        say(f"STALE: {newest.member} reported last, {ago((now_ms - newest.time_ms) / 1000)}; nobody knows how it is now")
    for line in table(HEADER, [row_of(node, now_ms, is_stale=is_stale) for node in nodes]):
        say(line)
    say(counted(nodes, is_stale=is_stale))


HEADER = ("node", "state", "cause", "since", "silent", "round", "does", "what")


def row_of(node: NodeHealth, now_ms: int, *, is_stale: bool) -> tuple[object, ...]:
    """Return a node's line of the table."""
    since = ago(max(0, now_ms - node.since_ms) / 1000)
    state = f"{STALE} ({node.state})" if is_stale else node.state
    silent = f"{node.silence_ms / 1000:.1f} s"
    return (node.client, state, node.cause or "-", since, silent, node.round, node.activity or "-", node.note)


def counted(nodes: Sequence[NodeHealth], *, is_stale: bool) -> str:
    """Return how many nodes are in which state, and apart from them how many servers."""
    servers = [node for node in nodes if is_server(node)]
    clients = [node for node in nodes if not is_server(node)]
    more = f"; {_counted(servers, 'server', is_stale=is_stale)}" if servers else ""
    return _counted(clients, "node", is_stale=is_stale) + more


def _counted(nodes: Sequence[NodeHealth], name: str, *, is_stale: bool) -> str:
    if is_stale:
        return f"{number_of(len(nodes), name)}, {STALE}"
    counts = Counter(node.state for node in nodes)
    return f"{number_of(len(nodes), name)}: " + (
        ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state]) or "none"
    )


def node_json(node: NodeHealth, *, is_stale: bool) -> dict[str, Any]:
    """Return a node as an object; while the report is stale its state says so."""
    names = ("client", "cause", "kind", "since_ms", "silence_ms", "phi", "score", "round", "activity", "note")
    found = {name: getattr(node, name) for name in names}
    return {**found, "state": STALE if is_stale else node.state, "last_state": node.state}


def _show_node(federation: Federation, node: NodeHealth, *, is_stale: bool, as_json: bool) -> None:
    beat, alerts = _last_beat(federation, node), _alerts_of(federation, node.client)
    measures = dict(beat.condition.measures) if beat and beat.condition else {}
    lines = beat.condition.log.error_lines if beat and beat.condition and beat.condition.log else ()
    if as_json:
        told = [{"time_ms": alert.time_ms, "kind": alert.kind, "state": alert.state, "what": alert.what} for alert in alerts]
        say_json({**node_json(node, is_stale=is_stale), "measures": measures, "error_lines": list(lines), "alerts": told})
        return
    now_ms = time.time_ns() // 1_000_000
    pairs: list[tuple[str, object]] = list(zip(HEADER, row_of(node, now_ms, is_stale=is_stale), strict=True))
    pairs += [("phi", node.phi), ("score", node.score)]
    if node.kind in KINDS:
        pairs.append(("advice", KINDS[node.kind].advice))
    pairs += [(f"says {name}", value) for name, value in measures.items()]
    pairs += [(f"logged {number}", line) for number, line in enumerate(lines, 1)]
    for line in facts(pairs):
        say(line)
    rows = [(time_text(alert.time_ms), alert.severity, alert.state or "-", alert.what) for alert in alerts]
    for line in table(("alerts", "severity", "state", "what"), rows) if rows else ():
        say(line)


def _last_beat(federation: Federation, node: NodeHealth) -> Heartbeat | ServerHeartbeat | None:
    kind: type[Heartbeat | ServerHeartbeat] = ServerHeartbeat if is_server(node) else Heartbeat
    name = node.client.removeprefix(PREFIX) if is_server(node) else node.client
    found = None
    for event in _events(federation, federation.topics.health, name):
        if isinstance(event, kind) and name == (event.client if isinstance(event, Heartbeat) else event.member):
            found = event
    return found


def _alerts_of(federation: Federation, name: str) -> list[Alert]:
    events = _events(federation, federation.topics.alerts, name)
    return [event for event in events if isinstance(event, Alert) and event.subject == name][-10:]


def _events(federation: Federation, topic: str, key: str) -> Iterator[Any]:
    """Yield what a node's partition of a topic holds, as far back as is looked."""
    bus = federation.bus
    place = Place(topic, partition_for(key.encode(), bus.topics()[topic].partitions))
    end = bus.end_offset(place)
    for record in records_in(bus, place, max(bus.begin_offset(place), end - LOOK_BACK), end - 1):
        try:
            yield decode(record.value or b"")
        except InvalidRecord:
            continue
