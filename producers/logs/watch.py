"""A watch over one node's logs: what it has seen, and the digest of it that goes into a heartbeat.

Lines come from a program's own `logging` (`refold.producers.logs.handler`) or from files (`refold.producers.logs.follower`),
from any thread. What a digest tells counts as told only when its heartbeat was acknowledged (`confirm`): one that is lost
loses nothing.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict, deque

from refold.bus.clock import Clock, SystemClock
from refold.producers.logs.cleaning import masked, plain
from refold.producers.logs.packing import Counted, pack
from refold.producers.logs.parsing import level_of, split_stamp
from refold.producers.logs.templates import Template, TemplateMiner
from refold.schemas.condition import ERROR, MAX_LINES, UNKNOWN, WARNING, LogDigest

LINES_PER_S, BURST_LINES = 5_000, 50_000
"""What is looked at: a fifth of a core at most for long. What comes faster is counted, and lines of level error still looked at
as far as they keep to the same measure."""

SORTING_COST = 9
"""A line of a kind that was not seen lately takes ten times as long as another; endless new kinds must not cost more for it."""

FORMED_SHARE, FORMED_LINES = 0.95, 500
"""Where of the last lines, weighed so, nearly all say their level, a new kind of line that does not is told as a warning: it is
of another origin than the rest (a runtime that dies, a library that prints). Indented ones go on with the line before."""

MAX_NOTABLE = 128
"""Templates that wait to be told; the oldest go, and are told later by turns."""

SMOOTHING, LEAST_WINDOWS = 0.1, 5
"""Weight of the newest window in what is usual, and how many it takes to know."""

BURST_LEAST, BURST_DEVIATIONS = 20, 6.0
"""A burst has so many lines in a window, and lies so many deviations of a Poisson variable above what is usual."""


class LogWatch:
    """Counts and sorts the lines of a node's logs.

    Parameters
    ----------
    lines_per_s
        How many lines a second are looked at for long.
    """

    def __init__(self, *, lines_per_s: float = LINES_PER_S, max_templates: int = 1000, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._miner = TemplateMiner(max_templates=max_templates)
        self._life = os.urandom(8)
        self._counted = Counted()
        self._notable: OrderedDict[bytes, Template] = OrderedDict()
        self._bursts: dict[bytes, float] = {}
        self._new: set[bytes] = set()
        self._error_lines: deque[tuple[int, str]] = deque(maxlen=MAX_LINES)
        self._told_to = 0
        self._at_window: dict[bytes, int] = {}
        self._allowances = [_Allowance(lines_per_s), _Allowance(lines_per_s)]
        self._levelled = 0.0
        self._evicted = 0
        self._turn = 0
        self._offered: LogDigest | None = None

    def take(self, line: str, level: int | None = None) -> None:
        """Take in one line. It may be anything; only its first characters are looked at.

        Parameters
        ----------
        level
            As `refold.schemas.condition` numbers them; taken from the line where None.
        """
        with self._lock:
            self._take(line, level, self._clock.monotonic_s())

    def take_all(self, lines: list[str]) -> None:
        """Take in lines that were read together."""
        now_s = self._clock.monotonic_s()
        with self._lock:
            for line in lines:
                self._take(line, None, now_s)

    def pass_over(self, lines: int) -> None:
        """Count lines that were not read: they came too fast."""
        with self._lock:
            self._counted.lines += lines
            self._counted.unread += lines

    def _take(self, line: str, level: int | None, now_s: float) -> None:
        self._counted.lines += 1
        if level is None:
            level = level_of(line)
        self._levelled += ((level != UNKNOWN) - self._levelled) / FORMED_LINES
        if level >= WARNING:
            self._counted.warnings += level == WARNING
            self._counted.errors += level >= ERROR
        allowance = self._allowances[level >= ERROR]
        if not allowance.grants(now_s):
            self._counted.unread += 1
            return
        clean = plain(line)
        text = split_stamp(clean).strip()
        if not text:
            return
        sorted_before = self._miner.sorted
        template, is_new = self._miner.learn(text, level)
        if self._miner.sorted > sorted_before:
            allowance.charge(SORTING_COST)
        if is_new:
            if level == UNKNOWN and self._levelled > FORMED_SHARE and not clean[0].isspace():
                template.level = WARNING
            self._new.add(template.key)
            self._note(template)
        if level >= ERROR or (level == UNKNOWN and template.alarming):
            self._note(template)
            self._error_lines.append((self._counted.lines, text))

    def _note(self, template: Template) -> None:
        if template.key not in self._notable:
            self._notable[template.key] = template
            if len(self._notable) > MAX_NOTABLE:
                self._notable.popitem(last=False)

    def digest(self, size_bytes: int) -> LogDigest | None:
        """Return what there is to tell now, at most so many bytes once encoded; None if not even the counts fit.

        Ends a window: what was usual is reckoned anew. A digest that was not confirmed is told again, with what came since.
        """
        with self._lock:
            self._end_window()
            is_full, self._evicted = self._miner.evicted > self._evicted, self._miner.evicted
            self._counted.known = len(self._miner.templates)
            lines = [masked(line, size=300) for _, line in self._error_lines]
            self._told_to = self._counted.lines
            self._offered = pack(
                self._counted.head(self._life, is_full=is_full),
                [t for t in self._notable.values() if not t.is_gone],
                self._by_turns(),
                lines,
                new=self._new,
                bursts=self._bursts,
                size_bytes=size_bytes,
            )
            return self._offered

    def confirm(self) -> None:
        """Take note that the last digest was received."""
        with self._lock:
            digest, self._offered = self._offered, None
            if digest is None:
                return
            for told in digest.templates:
                self._notable.pop(told.key, None)
                self._new.discard(told.key)
                self._bursts.pop(told.key, None)
                if (template := self._miner.templates.get(told.key)) is not None:
                    template.told = told.count
            for key, count in digest.counts:
                if (template := self._miner.templates.get(key)) is not None:
                    template.told = count
            while self._error_lines and self._error_lines[0][0] <= self._told_to:
                self._error_lines.popleft()
            self._new &= self._miner.templates.keys()

    def _end_window(self) -> None:
        for key, template in self._miner.templates.items():
            fresh = template.count - self._at_window.get(key, 0)
            if _is_burst(template, fresh):
                self._bursts[key] = fresh / max(template.usual, 1.0)
                self._note(template)
            template.usual += (fresh - template.usual) * max(SMOOTHING, 1 / (template.windows + 1))
            template.windows += 1
        self._at_window = {key: template.count for key, template in self._miner.templates.items()}
        self._bursts = {key: burst for key, burst in self._bursts.items() if key in self._notable}

    def _by_turns(self) -> list[Template]:
        """Return the known templates, beginning with another each time: who began to read late learns of all."""
        known = list(self._miner.templates.values())
        self._turn = (self._turn + 1) % max(1, len(known))
        return known[self._turn :] + known[: self._turn]


class _Allowance:
    """So many lines a second, and a store for those that come together."""

    def __init__(self, lines_per_s: float) -> None:
        self._per_s = lines_per_s
        self._most = max(lines_per_s * BURST_LINES / LINES_PER_S, 1.0)
        self._left = self._most
        self._at_s = 0.0

    def grants(self, now_s: float) -> bool:
        if now_s > self._at_s:
            self._left = min(self._most, self._left + (now_s - self._at_s) * self._per_s)
            self._at_s = now_s
        if self._left < 1:
            return False
        self._left -= 1
        return True

    def charge(self, lines: int) -> None:
        """Count a line that took longer as so many more."""
        self._left -= lines


def _is_burst(template: Template, fresh: int) -> bool:
    if template.windows < LEAST_WINDOWS or fresh < BURST_LEAST:
        return False
    return fresh - template.usual > BURST_DEVIATIONS * (template.usual + 1) ** 0.5 and fresh > 3 * template.usual
