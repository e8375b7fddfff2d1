"""What ``refold top`` shows, as lines that fit: no line is wider than the screen, and no text of strangers moves its cursor."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len, set_cell_size

from refold.cli.health import WORST_FIRST, counted, row_of
from refold.cli.output import table, time_text
from refold.cli.overview import Overview
from refold.cli.serve import ago
from refold.jsonable import safe_text
from refold.schemas.health import HEALTHY

LEAST_HEIGHT = 12
NODE_COLUMNS = ("node", "state", "cause", "since", "silent", "round", "does", "what")


def screen(overview: Overview, width: int, height: int, now_ms: int) -> list[str]:
    """Return the lines of a screen of this size; at least `LEAST_HEIGHT` of them."""
    height = max(height, LEAST_HEIGHT)
    head = [_title(overview), _rounds(overview, now_ms), _verdicts(overview)]
    groups = _groups(overview, now_ms)
    left = height - len(head) - len(groups) - 1  # The last line is for the keys.
    alerts = _alerts(overview, max(2, min(6, left // 3)))
    nodes = _nodes(overview, left - len(alerts), now_ms)
    lines = [*head, *groups, *nodes, *alerts]
    del lines[height - 1 :]
    lines += [""] * (height - 1 - len(lines)) + ["q ends"]
    return [fitted(line, width) for line in lines]


def fitted(line: str, width: int) -> str:
    """Return a line without control characters, cut to so many columns; wide characters take two."""
    safe = safe_text(line)
    return safe if cell_len(safe) <= width else set_cell_size(safe, max(0, width - 1)).rstrip() + "…"


def _title(overview: Overview) -> str:
    state = "ended" if overview.has_ended else "running"
    return f"{overview.federation.name}  {state}  {overview.federation.url}"


def _rounds(overview: Overview, now_ms: int) -> str:
    since = ago((now_ms - overview.round_time_ms) / 1000) if overview.round_time_ms else "never"
    newest = overview.rounds[-1] if overview.rounds else None
    members = f"  members {len(newest.members)}" if newest else ""
    void = overview.outcomes["void"]
    return f"round {overview.head}{members}  committed {since}" + (f"  void {void}" if void else "")


def _verdicts(overview: Overview) -> str:
    verdicts = overview.verdicts
    reasons = ", ".join(f"{reason} {count}" for reason, count in verdicts.rejected.most_common(4))
    total = sum(verdicts.rejected.values())
    return f"updates  accepted {verdicts.accepted}  rejected {total}" + (f" ({reasons})" if reasons else "")


def _groups(overview: Overview, now_ms: int) -> list[str]:
    rows = [
        (s.group, s.to_do, s.of, _rate(s.per_s), ago(s.idle_s(now_ms)), ", ".join(s.members) or "-") for s in overview.groups
    ]
    return ["", *table(("group", "lag", "of", "in/s", "progress", "at work"), rows)]


def _rate(per_s: float | None) -> str:
    return "-" if per_s is None else f"{per_s:.1f}"


def _nodes(overview: Overview, room: int, now_ms: int) -> list[str]:
    is_stale = overview.reports.is_stale(now_ms)
    nodes = sorted(overview.reports.nodes(), key=lambda node: (WORST_FIRST.get(node.state, 9), node.client))
    title = counted(nodes, is_stale=is_stale)
    if overview.reports.newest is None:
        return ["", "nodes: no health group has reported yet"]
    shown = nodes[: max(0, room - 3)]
    if len(shown) < len(nodes) and nodes[len(shown)].state == HEALTHY:
        title += f"; {len(nodes) - len(shown)} more are not shown"
    rows: Sequence[Sequence[object]] = [row_of(node, now_ms, is_stale=is_stale) for node in shown]
    return ["", title, *table(NODE_COLUMNS, rows)][: max(0, room)]


def _alerts(overview: Overview, room: int) -> list[str]:
    newest = list(overview.alerts)[-(room - 1) :]
    if not newest:
        return []
    told = [f"{time_text(a.time_ms)[11:19]}  {a.severity:<7}  {safe_text(a.subject)}: {safe_text(a.what)}" for a in newest]
    return ["alerts", *reversed(told)]
