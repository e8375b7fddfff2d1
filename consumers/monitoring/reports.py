"""The health group's word on all nodes, as signed pages."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace

from refold.consumers.monitoring.kinds import KINDS
from refold.consumers.monitoring.monitor import Monitor
from refold.consumers.monitoring.node import Node
from refold.schemas.health import HealthReport, NodeHealth
from refold.schemas.keys import HEALTH_TAG, SigningKey

NODES = 64
"""Nodes on a page: when the state of one changes its page is written, at some 10 µs a node."""


@dataclass(slots=True)
class Reports:
    """What one member of the group writes: all pages when they are due, and in between those on which a state changed.

    Which node is on which page is settled by each whole report, so that a page alone never tells of a node twice or not at all.

    Parameters
    ----------
    key
        The server's log key; None where the log has none.
    """

    federation: str
    member: str
    key: SigningKey | None
    _pages: list[list[str]] = field(default_factory=list)
    _page_of: dict[str, int] = field(default_factory=dict)

    def whole(self, monitors: Sequence[Monitor], now_s: float, wall_ms: int, every_ms: int) -> Iterator[HealthReport]:
        """Yield a report on every node, in as many pages as they need; one page where there are none.

        Parameters
        ----------
        every_ms
            When the next one is due.
        """
        clients = sorted({client for monitor in monitors for client in monitor.nodes})
        self._pages = [clients[first : first + NODES] for first in range(0, len(clients), NODES)] or [[]]
        self._page_of = {client: number for number, page in enumerate(self._pages) for client in page}
        for number in range(len(self._pages)):
            yield self._page(number, monitors, now_s, wall_ms, every_ms)

    def knows(self, clients: Collection[str]) -> bool:
        """Whether each of these nodes was on the last whole report."""
        return all(client in self._page_of for client in clients)

    def of(
        self, clients: Collection[str], monitors: Sequence[Monitor], now_s: float, wall_ms: int, every_ms: int
    ) -> Iterator[HealthReport]:
        """Yield the pages of these nodes, which are known (`knows`)."""
        for number in sorted({self._page_of[client] for client in clients}):
            yield self._page(number, monitors, now_s, wall_ms, every_ms)

    def _page(self, number: int, monitors: Sequence[Monitor], now_s: float, wall_ms: int, every_ms: int) -> HealthReport:
        known = {client: monitor for monitor in monitors for client in self._pages[number] if client in monitor.nodes}
        told = tuple(
            _told(monitor, monitor.nodes[client], now_s, wall_ms) for client, monitor in sorted(known.items(), key=_name)
        )
        key, pages = self.key, len(self._pages)
        report = HealthReport(
            self.federation, self.member, number, pages, every_ms, wall_ms, told, key.key_id if key else bytes(8)
        )
        return replace(report, signature=key.sign(HEALTH_TAG, report.digest)) if key else report


def _name(item: tuple[str, Monitor]) -> str:
    return item[0]


def _told(monitor: Monitor, node: Node, now_s: float, wall_ms: int) -> NodeHealth:
    silence_s = max(0.0, monitor.silence_s(node, now_s))
    since_ms = max(0, wall_ms - int(1000 * (now_s - node.since_s)))
    note = node.note or (KINDS[node.kind].what if node.kind else "")
    last = node.last
    return NodeHealth(
        node.client,
        node.state,
        node.cause,
        node.kind,
        since_ms,
        int(silence_s * 1000),
        round(monitor.phi(node, now_s), 2),
        round(node.score, 2),
        last.round,
        last.activity[:64],
        (note if note.isprintable() else "".join(c if c.isprintable() else "·" for c in note))[:400],
    )
