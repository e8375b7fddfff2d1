"""What an audit says: findings, one by one, and a summary at the end."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

BROKEN, NOTICE = "broken", "notice"

CHAIN = "chain"
ONE_VERDICT = "one-verdict"
ACCEPTED_ONCE = "accepted-once"
RECEIPTS = "receipts"
ROUNDS = "rounds"
STANDING = "standing"
DIGESTS = "digests"
STEPS = "steps"
PAYLOADS = "payloads"
SNAPSHOTS = "snapshots"
CHECKPOINTS = "checkpoints"
SIGNATURES = "signatures"
AGAINST = "against"
CHECKS = (
    CHAIN,
    ONE_VERDICT,
    ACCEPTED_ONCE,
    RECEIPTS,
    ROUNDS,
    STANDING,
    SIGNATURES,
    DIGESTS,
    STEPS,
    PAYLOADS,
    SNAPSHOTS,
    CHECKPOINTS,
    AGAINST,
)

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it must be, or (a notice) that the reader should know.

    Parameters
    ----------
    check
        One of `CHECKS`.
    topic
        Full name of the topic at fault.
    index
        Index of the event in its log.
    severity
        ``broken`` or ``notice``. A log with notices alone is sound.
    """

    check: str
    what: str
    hint: str = ""
    topic: str | None = None
    partition: int | None = None
    offset: int | None = None
    index: int | None = None
    client: str | None = None
    round: int | None = None
    severity: str = BROKEN

    @property
    def is_broken(self) -> bool:
        """Whether it makes the log unsound."""
        return self.severity == BROKEN

    @property
    def where(self) -> dict[str, Any]:
        """The places that are known, by name."""
        names = ("topic", "partition", "offset", "index", "client", "round")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def __str__(self) -> str:
        text = f"{self.check}: {self.what}"
        if self.where:
            text += " (" + ", ".join(f"{name} {value}" for name, value in self.where.items()) + ")"
        return f"{text}: {self.hint}" if self.hint else text


@dataclass(slots=True)
class LogCount:
    """What one log holds.

    Parameters
    ----------
    stale
        Commits of a writer that came second, and repeats: every reader skips them, as it should.
    foreign
        Records that are neither commits nor parts of one, or that build on nothing in the log.
    """

    commits: int = 0
    events: int = 0
    stale: int = 0
    foreign: int = 0
    head: str = ""


@dataclass(slots=True)
class Summary:
    """What an audit counted.

    Parameters
    ----------
    accepted, evaluations
        Verdicts that keep an update, training updates and evaluations.
    rejected
        Updates refused, by their first reason.
    unattributed
        Records that nobody can be held to, by reason.
    waiting
        Updates in the topic without a verdict yet.
    uncovered
        Events of `accepted` that `rounds` does not cover yet.
    replayed, rederived
        Rounds whose digests came out of replay, and whose steps came out of the accepted deltas again.
    not_rederivable
        Rounds whose deltas were pruned, or do not open.
    erased, sealed
        Rounds with updates that do not open, once for each: their client was erased, or their key is not at hand.
    snapshots
        Snapshots that were loaded and agree.
    merged
        Merged steps that are the sum of their rounds' steps.
    signed, unsigned
        Accepted updates whose client's signature was checked, and those from before the log kept what that takes.
    checkpoints
        Signed checkpoints in `rounds`.
    against, fitting
        Checkpoints from outside that the logs were held against, and how many of them fit both.
    """

    logs: dict[str, LogCount] = field(default_factory=dict)
    clients: int = 0
    accepted: int = 0
    evaluations: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    unattributed: Counter[str] = field(default_factory=Counter)
    waiting: int = 0
    uncovered: int = 0
    rounds: int = 0
    void: int = 0
    receipts: int = 0
    replayed: int = 0
    rederived: int = 0
    not_rederivable: list[int] = field(default_factory=list)
    erased: list[int] = field(default_factory=list)
    sealed: list[int] = field(default_factory=list)
    payloads: int = 0
    snapshots: int = 0
    merged: int = 0
    signed: int = 0
    unsigned: int = 0
    checkpoints: int = 0
    against: int = 0
    fitting: int = 0
    broken: int = 0
    notices: int = 0

    @property
    def received(self) -> int:
        """Updates that reached the topic, as far as the log knows of them."""
        return self.accepted + self.evaluations + self.rejected.total() + self.unattributed.total() + self.waiting

    @property
    def is_sound(self) -> bool:
        """Whether nothing broken was found."""
        return self.broken == 0

    def to_json(self) -> dict[str, Any]:
        """Return it as what `json.dumps` takes."""
        counts = {spec.name: getattr(self, spec.name) for spec in dataclasses.fields(self)}
        counts["logs"] = {name: dataclasses.asdict(log) for name, log in self.logs.items()}
        counts |= {name: dict(counts[name]) for name in ("rejected", "unattributed")}
        return {"sound": self.is_sound, "received": self.received, **counts}
