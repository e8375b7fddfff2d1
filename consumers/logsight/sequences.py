"""What came before earlier failures: rare templates, alone and in order of two, against how often they came without one.

An occurrence of a pattern is open for `HORIZON_S`; if its node fails meanwhile, it counts as followed by a failure. A pattern
is told once it was followed so at least `LEAST_FAILURES` times, on any node, and in at least `LEAST_SHARE` of its occurrences.

Bounds: `MOST_PATTERNS` patterns for the federation, the least recently seen go; `MOST_RECENT` templates a node.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field

HORIZON_S = 120.0
LEAST_FAILURES, LEAST_SHARE = 2, 0.6
MOST_PATTERNS, MOST_RECENT = 2048, 8

Pattern = tuple[str, ...]
"""One text, or two in the order in which they came up."""


@dataclass(slots=True)
class _Record:
    occurrences: int = 0
    failures: int = 0


@dataclass(frozen=True, slots=True)
class Omen:
    """A pattern that came before failures, and has come again."""

    pattern: Pattern
    failures: int
    occurrences: int


@dataclass(slots=True)
class Sequences:
    """Patterns of all nodes."""

    _records: OrderedDict[Pattern, _Record] = field(default_factory=OrderedDict)
    _recent: dict[str, deque[tuple[str, float]]] = field(default_factory=dict)
    _open: dict[str, dict[Pattern, float]] = field(default_factory=dict)

    def see(self, node: str, text: str, now_s: float) -> Omen | None:
        """Take in a rare template that a node shows now; return the strongest pattern that it completes, if one is an omen."""
        recent = self._recent.setdefault(node, deque(maxlen=MOST_RECENT))
        while recent and now_s - recent[0][1] > HORIZON_S:
            recent.popleft()
        patterns: list[Pattern] = [(text,), *((before, text) for before, _ in recent if before != text)]
        omens = [omen for pattern in dict.fromkeys(patterns) if (omen := self._count(node, pattern, now_s))]
        recent.append((text, now_s))
        return max(omens, key=lambda omen: (omen.failures / omen.occurrences, omen.failures, len(omen.pattern)), default=None)

    def failed(self, node: str, now_s: float) -> None:
        """Take note that a node failed: what is open of it was followed by a failure."""
        for pattern, since_s in self._open.pop(node, {}).items():
            record = self._records.get(pattern)
            if record is not None and now_s - since_s <= HORIZON_S:
                record.failures += 1
        self._recent.pop(node, None)

    def forget(self, node: str) -> None:
        """Let go of a node that is gone for good."""
        self._open.pop(node, None)
        self._recent.pop(node, None)

    def _count(self, node: str, pattern: Pattern, now_s: float) -> Omen | None:
        open_ = self._open.setdefault(node, {})
        for old in [old for old, since_s in open_.items() if now_s - since_s > HORIZON_S]:
            del open_[old]
        record = self._records.setdefault(pattern, _Record())
        self._records.move_to_end(pattern)
        if len(self._records) > MOST_PATTERNS:
            self._records.popitem(last=False)
        if pattern in open_:
            return None  # The same occurrence goes on.
        known = Omen(pattern, record.failures, record.occurrences)
        record.occurrences += 1
        if len(open_) < MOST_RECENT * (MOST_RECENT + 1):
            open_[pattern] = now_s
        is_omen = known.failures >= LEAST_FAILURES and known.failures >= LEAST_SHARE * known.occurrences
        return known if is_omen else None
