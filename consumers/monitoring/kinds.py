"""Every kind of alert: what it means and what to do, in one table that code, documents and tests share."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

from refold.schemas.health import DATA, NETWORK, NODE, STRAGGLER

INFO, WARNING, ERROR = "info", "warning", "error"


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of trouble of a node.

    Parameters
    ----------
    cause
        Of `refold.schemas.health.CAUSES`.
    what
        In words, after the node's name.
    """

    cause: str
    severity: str
    what: str
    advice: str


SILENT, STOPPED, STARVED, MEMORY_SHORT, DISK_SHORT = "silent", "stopped", "starved", "memory", "disk"
LATE, CLOCK, SLOW, LOSS_HIGH, REFUSED, LOG, UNUSUAL = "late", "clock", "slow", "loss", "refused", "log", "unusual"
GROUP = "group"
CUT_OFF, RETURNED, RECOVERED, BUS_SILENT, BANNED = "cut-off", "rejoined", "recovered", "bus-silent", "banned"

KINDS = MappingProxyType(
    {
        REFUSED: Kind(
            DATA,
            WARNING,
            "sends updates that are refused for what they hold",
            "`refold quarantine list` shows why; look at its data and code, and ban it if it does harm",
        ),
        MEMORY_SHORT: Kind(
            NODE,
            WARNING,
            "runs out of memory",
            "look for a leak or a batch too large; it will be killed when the limit is reached",
        ),
        DISK_SHORT: Kind(
            NODE,
            WARNING,
            "runs out of disk",
            "free space where its outbox lies; updates wait there until they are acknowledged",
        ),
        CLOCK: Kind(
            NODE,
            WARNING,
            "had its clock set",
            "nothing is decided by clocks; mend its time service, or its log lines are hard to follow",
        ),
        STOPPED: Kind(
            NODE,
            WARNING,
            "stood still for a while and goes on",
            "it was suspended, swapped out or its machine was frozen; it catches up by itself",
        ),
        LOSS_HIGH: Kind(
            DATA,
            WARNING,
            "has a training loss unlike its own past and its peers",
            "look at its labels and preprocessing; its updates go on being judged",
        ),
        LATE: Kind(
            NETWORK,
            WARNING,
            "is late or loses beats on the way to the bus",
            "look at the network between it and the bus; its updates wait in its outbox and are sent again",
        ),
        STARVED: Kind(
            NODE,
            WARNING,
            "gets too little processor time",
            "look for what else runs there, or a limit of its container that is too low",
        ),
        SLOW: Kind(
            STRAGGLER,
            WARNING,
            "gets on much slower than usual, and nothing else is wrong with it",
            "a round that all others have answered waits for it a bounded time; give it less work or more machine",
        ),
        GROUP: Kind(
            NODE,
            WARNING,
            "runs a group that hangs or begins again and again",
            "its log says why; restart that server if it stays so: another member takes over",
        ),
        LOG: Kind(NODE, WARNING, "logs what it did not log before", "`refold health NODE` shows the lines"),
        UNUSUAL: Kind(
            NODE,
            WARNING,
            "measures unlike its past in several ways, none of them decisive",
            "`refold health NODE` shows which; look again if it stays so",
        ),
        SILENT: Kind(
            NODE,
            WARNING,
            "is silent while others are heard",
            "it was killed, frozen or unplugged: start it again, it goes on where it was; rounds do not wait for it",
        ),
        CUT_OFF: Kind(
            NETWORK,
            WARNING,
            "fell silent after its way to the bus had got bad, or together with others",
            "look at the network between it and the bus; it catches up by itself",
        ),
    }
)
"""Kind → what it is, the one that explains others first."""

ALSO = MappingProxyType(
    {
        RETURNED: "a node that was dead is heard again; it catches up by itself",
        RECOVERED: "a node is as it should be again",
        BUS_SILENT: "nobody at all is heard: the bus, or the way from it to the health group, is down; no node is blamed",
        BANNED: "the health group commanded a ban, because its policy says so",
    }
)
"""Further kinds that the health group writes."""

OF_OTHERS = frozenset({
    *("command", "detector", "deadline", "equivocation", "over-limit", "forgery"),
    *("model", "rollback", "void", "saturated", "reputation", "diverged", "lying", "mended"),
})  # fmt: skip
"""Kinds that the other groups write."""

ALERT_KINDS = frozenset({*KINDS, *ALSO, *OF_OTHERS})
"""Every kind; docs/OPERATIONS.md has a section for each."""
