"""Which of the things that a log came to go into one digest, so that it keeps to its size."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from refold.producers.logs.templates import Template
from refold.schemas.condition import MAX_COUNTS, MAX_LINES, MAX_TEMPLATES, WARNING, LogDigest, LogTemplate

HEAD_BYTES = 80
"""An encoded digest without templates, counts and lines, at its longest."""

NOTABLE, LINES, COUNTS = 0.55, 0.8, 0.9
"""Up to which share of the room each kind goes; the rest is for known templates, told again by turns."""


@dataclass(slots=True)
class Counted:
    """What a watch has counted since it began."""

    lines: int = 0
    warnings: int = 0
    errors: int = 0
    unread: int = 0
    known: int = 0

    def head(self, life: bytes, *, is_full: bool) -> LogDigest:
        """Return a digest of these counts alone."""
        return LogDigest(
            life,
            self.lines,
            self.warnings,
            self.errors,
            self.unread,
            self.known,
            is_full,
            templates=(),
            counts=(),
            error_lines=(),
        )


def pack(
    head: LogDigest,
    notable: Sequence[Template],
    known: Iterable[Template],
    lines: Sequence[str],
    *,
    new: Collection[bytes],
    bursts: Mapping[bytes, float],
    size_bytes: int,
) -> LogDigest | None:
    """Return a digest of at most so many bytes once encoded, or None if there is no room for its counts.

    Parameters
    ----------
    notable
        In the order in which they came up. Where not all fit, those that tell of trouble come before those that are new only.
    known
        All templates, in the order in which they are told again.
    lines
        Masked, oldest first; the newest that fit are told.
    """
    room = size_bytes - HEAD_BYTES
    if room < 0:
        return None
    used = 0

    def fits(size: int, share: float) -> bool:
        nonlocal used
        if used + size > room * share:
            return False
        used += size
        return True

    urgent_first = sorted(notable, key=lambda one: not (one.alarming or one.level >= WARNING or one.key in bursts))
    chosen = {one.key for one in _first(urgent_first, MAX_TEMPLATES) if fits(_size(one), NOTABLE)}
    told_lines = [line for line in reversed(lines[-MAX_LINES:]) if fits(len(line.encode()) + 3, LINES)]
    moved = (one for one in known if one.count != one.told and one.key not in chosen)
    counts = [(one.key, one.count) for one in _first(moved, MAX_COUNTS) if fits(20, COUNTS)]
    templates = [_told(one, new, bursts) for one in notable if one.key in chosen]
    again = (one for one in known if one.key not in chosen)
    templates += [_told(one, new, bursts) for one in _first(again, MAX_TEMPLATES - len(templates)) if fits(_size(one), 1.0)]
    return replace(head, templates=tuple(templates), counts=tuple(counts), error_lines=tuple(reversed(told_lines)))


def _first(items: Iterable[Template], most: int) -> Iterator[Template]:
    return (item for item, _ in zip(items, range(most), strict=False))


def _told(one: Template, new: Collection[bytes], bursts: Mapping[bytes, float]) -> LogTemplate:
    return LogTemplate(one.key, one.text, one.level, one.count, one.key in new, min(bursts.get(one.key, 0.0), 1e9))


def _size(one: Template) -> int:
    return len(one.text.encode()) + 34
