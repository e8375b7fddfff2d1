"""What became of each fault, computed from the log: the injectors' lines joined with events by digest, never believed.

The log is taken as ``refold log --json`` prints it, so that anyone can repeat the join on the files that are left.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from refold.demo.faults import KILLED, NO_CLIENTS, TWICE, Fault
from refold.schemas.reasons import ANOMALY, CONTENT, INTEGRITY, PROTOCOL, REASONS

Event = dict[str, Any]

FINDERS = {
    INTEGRITY: "consistency check",
    CONTENT: "consistency check",
    PROTOCOL: "order in the log",
    ANOMALY: "statistics",
}
REJOINED, ACCEPTED, UNSEEN = "came back", "accepted", "not in the log"


@dataclass(frozen=True, slots=True)
class Finding:
    """What the log says of one fault.

    Parameters
    ----------
    reason
        Reason codes of the verdict; for a killed client what became of the update that it died over.
    """

    kind: str
    client: str
    round: int
    caught: bool
    found_by: str
    reason: str


def findings(faults: Iterable[Fault], log: Iterable[Event]) -> list[Finding]:
    """Return a finding for each fault of a client, in order of round and client."""
    verdicts: dict[str, list[Event]] = {}
    for event in log:
        if event["type"] in ("UpdateAccepted", "UpdateRejected"):
            verdicts.setdefault(event["origin"]["digest"], []).append(event)
        elif event["type"] == "Unattributed":
            verdicts.setdefault(event["digest"], []).append(event)
    found = [_finding(fault, verdicts) for fault in faults if fault.kind not in NO_CLIENTS]
    return sorted(found, key=lambda finding: (finding.round, finding.client))


def _finding(fault: Fault, verdicts: dict[str, list[Event]]) -> Finding:
    """Judge one fault by the verdicts on the very bytes that were sent."""
    events = verdicts.get(fault.record or fault.update, [])
    reasons = [reason for event in events for reason in _reasons(event)]
    accepted = any(event["type"] == "UpdateAccepted" for event in events)
    if fault.kind == KILLED:
        # It died before it sent the update: that there is a verdict at all shows that it came back and sent what it had kept.
        outcome = ", ".join(reasons) or ACCEPTED
        caught, finder, reason = bool(events), "outbox", f"{REJOINED}: {outcome}" if events else UNSEEN
    elif fault.kind == TWICE:
        caught, finder, reason = "duplicate" in reasons, FINDERS[PROTOCOL], ", ".join(reasons) or ACCEPTED
    else:
        caught = bool(reasons) and not accepted
        finder = " and ".join(dict.fromkeys(FINDERS[REASONS[r]] for r in reasons)) if caught else ""
        reason = ", ".join(reasons) or (ACCEPTED if accepted else UNSEEN)
    return Finding(fault.kind, fault.client, fault.round, caught, finder if caught else "", reason)


def _reasons(event: Event) -> list[str]:
    if event["type"] in ("Unattributed", "UpdatesRefused"):
        return [event["reason"]]
    return list(event.get("reasons", ()))


def count_updates(log: Iterable[Event]) -> dict[str, Any]:
    """Return how many updates were received, accepted, and rejected by (first) reason, by the log's verdicts."""
    accepted = 0
    rejected: Counter[str] = Counter()
    for event in log:
        if event["type"] == "UpdateAccepted":
            accepted += 1
        elif event["type"] in ("UpdateRejected", "UpdatesRefused", "Unattributed"):
            rejected[_reasons(event)[0]] += event["count"]
    return {"received": accepted + rejected.total(), "accepted": accepted, "rejected": dict(sorted(rejected.items()))}
