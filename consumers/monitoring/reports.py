"""The health group's word on all nodes, as signed pages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from refold.consumers.monitoring.kinds import KINDS
from refold.consumers.monitoring.monitor import Monitor
from refold.consumers.monitoring.node import Node
from refold.schemas.health import PAGE_NODES, HealthReport, NodeHealth
from refold.schemas.keys import HEALTH_TAG, SigningKey


def report_pages(
    monitor: Monitor, federation: str, member: str, now_s: float, wall_ms: int, every_ms: int, key: SigningKey | None
) -> Iterator[HealthReport]:
    """Yield a report, in as many pages as the nodes need; one page where there are none.

    Parameters
    ----------
    every_ms
        When the next one is due.
    key
        The server's log key; None where the log has none.
    """
    nodes = sorted(monitor.nodes.values(), key=lambda node: node.client)
    pages = [nodes[first : first + PAGE_NODES] for first in range(0, len(nodes), PAGE_NODES)] or [[]]
    for number, page in enumerate(pages):
        told = tuple(_told(monitor, node, now_s, wall_ms) for node in page)
        report = HealthReport(federation, member, number, len(pages), every_ms, wall_ms, told, key.key_id if key else bytes(8))
        yield replace(report, signature=key.sign(HEALTH_TAG, report.digest)) if key else report


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
        "".join(c if c.isprintable() else "·" for c in note)[:400],
    )
