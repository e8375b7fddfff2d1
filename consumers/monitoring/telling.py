"""Changes of state as alerts for people: one each, or one for many that changed alike at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from refold.consumers.monitoring.kinds import ALSO, BUS_SILENT, INFO, KINDS, RECOVERED, RETURNED
from refold.consumers.monitoring.node import Change
from refold.schemas.checks import Alert
from refold.schemas.health import DEAD, LEFT, NETWORK, REJOINED

MANY = 16
"""So many nodes that change alike in one turn are told of together."""
ERROR, WARNING = "error", "warning"


def alerts_of(changes: Iterable[Change], round_: int, now_ms: int) -> list[Alert]:
    """Return what people are told of these changes; who leaves in an orderly way, or comes back from that, alarms nobody."""
    alike: dict[tuple[str, str], list[Change]] = {}
    for change in changes:
        if LEFT in (change.state, change.before):
            continue
        alike.setdefault((change.state, change.kind), []).append(change)
    found = []
    for group in alike.values():
        if len(group) > MANY:
            found.append(_together(group, round_, now_ms))
        else:
            found += [_alone(change, round_, now_ms) for change in group]
    return found


def bus_alert(round_: int, now_ms: int) -> Alert:
    """Return the alert that nobody at all is heard."""
    advice = "`refold doctor` examines the bus; nodes go on by themselves once it is back"
    return Alert("bus", ERROR, ALSO[BUS_SILENT], advice, round_, now_ms, BUS_SILENT, NETWORK)


def _alone(change: Change, round_: int, now_ms: int) -> Alert:
    what, advice, severity, kind = _words(change)
    return Alert(change.client, severity, what, advice, round_, now_ms, kind, change.cause, change.state, change.evidence)


def _together(group: Sequence[Change], round_: int, now_ms: int) -> Alert:
    what, advice, severity, kind = _words(group[0])
    names = ", ".join(change.client for change in group[:10])
    told = f"{len(group)} nodes: {what}: {names}, …"
    return Alert("nodes", severity, told, advice, round_, now_ms, kind, group[0].cause, group[0].state)


def _words(change: Change) -> tuple[str, str, str, str]:
    """Return what happened, what can be done, how grave it is, and its kind."""
    if not change.kind:
        kind = RETURNED if change.state == REJOINED else RECOVERED
        return ALSO[kind], "", INFO, kind
    of = KINDS[change.kind]
    note = f": {change.note}" if change.note else ""
    dead = "; it is held to be dead" if change.state == DEAD else ""
    return f"{of.what}{dead}{note}", of.advice, ERROR if change.state == DEAD else of.severity, change.kind
