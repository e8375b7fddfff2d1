"""Looking at the digests of nodes' logs: what is new against a node's own past and its peers, what bursts, what is an omen.

A digest is its node's own word. So nothing here decides anything: it is a reason to look, in a plain sentence, and counts for
as much as the health group lets it. A node can only ever speak of itself: what it tells makes no other node look unusual, and
it can fill no more than its own part of what is remembered. What it tells too much of is told as one finding (`FLOOD`).

Texts come from records, which hold no character that does not print; they are cut here, and markup is for screens to escape.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

from refold.consumers.logsight.sequences import Omen, Sequences
from refold.consumers.logsight.vocabulary import Vocabulary
from refold.producers.logs.parsing import tells_of_crash, tells_of_failure
from refold.schemas.condition import ERROR, UNKNOWN, WARNING, LogDigest, LogTemplate

NEW, AGAIN, BURST, ERRORS, OMEN, EXPLOSION, FLOOD = "new", "again", "burst", "errors", "omen", "explosion", "flood"
KINDS = (NEW, AGAIN, BURST, ERRORS, OMEN, EXPLOSION, FLOOD)

LEARNED_LINES, LEARNED_S, QUIET_NODE_S = 1_000, 60.0, 600.0
"""What it takes to know what a node usually says: so many lines and a minute, or ten. Till then only errors are news."""

ALERTING = 1.5
PEERS_KNOW = 1.5
"""What new lines must come to: 3 for an error or 1.5 for a warning, 1.5 for words of failure, less where peers show it too."""

QUIET_S = 300.0
"""A known line of a failure is told again once it was not seen for so long."""

MOST_FINDINGS, FINDINGS_PER_S = 64.0, 0.1
"""Findings of one node that are told: so many together, and one in ten seconds for long."""

SMOOTHING, LEAST_DIGESTS, LEAST_ERRORS, DEVIATIONS = 0.1, 10, 10, 6.0
MOST_ALARMING = 32
MOST_CHARACTERS = 160


@dataclass(frozen=True, slots=True)
class Unusual:
    """Something in a node's log that it did not use to say.

    Parameters
    ----------
    kind
        One of `KINDS`.
    text
        The template or line that it is about, or "".
    level
        Of that line.
    score
        From 0 on; larger is more unusual. New lines of a failure are at `ALERTING` and above.
    sentence
        What to tell a person. It names the node.
    """

    node: str
    kind: str
    text: str
    level: int
    score: float
    sentence: str


@dataclass(slots=True)
class _Past:
    """What is remembered of one node."""

    life: bytes = b""
    lines: int = 0
    errors: int = 0
    learned: int = 0
    since_s: float = 0.0
    digests: int = 0
    usual_errors: float = 0.0
    was_full: bool = False
    left: float = MOST_FINDINGS
    at_s: float = 0.0
    alarming: OrderedDict[bytes, tuple[int, float]] = field(default_factory=OrderedDict)

    def is_learning(self, now_s: float) -> bool:
        """Whether too little is known of the node to call anything but an error news."""
        for_s = now_s - self.since_s
        return for_s < LEARNED_S or (self.learned < LEARNED_LINES and for_s < QUIET_NODE_S)


class LogSight:
    """The logs of all nodes of a federation.

    Parameters
    ----------
    most_nodes
        Of which a past is kept; the one that was silent longest is forgotten for a new one.
    """

    def __init__(self, *, most_nodes: int = 20_000) -> None:
        self._most_nodes = most_nodes
        self._pasts: OrderedDict[str, _Past] = OrderedDict()
        self._vocabulary = Vocabulary()
        self._sequences = Sequences()

    def take(self, node: str, digest: LogDigest, now_s: float) -> tuple[Unusual, ...]:
        """Take in the digest of a beat that is believed, and return what is unusual about it, in the order of the log.

        Parameters
        ----------
        now_s
            The reader's monotonic clock.
        """
        past = self._past(node, now_s)
        fresh = _Fresh.of(past, digest)
        findings = [
            *self._templates(node, past, digest, now_s),
            *_errors(node, past, digest, fresh),
            *_explosion(node, past, digest),
        ]
        past.learned = min(past.learned + fresh.lines, LEARNED_LINES)
        return tuple(_within_measure(node, past, findings, now_s))

    def failed(self, node: str, now_s: float) -> None:
        """Take note that a node was found dead: what its log said just before is what to look for."""
        self._sequences.failed(node, now_s)

    def forget(self, node: str) -> None:
        """Let go of a node that takes part no more."""
        if self._pasts.pop(node, None) is not None:
            self._vocabulary.forget(node)
            self._sequences.forget(node)

    def nodes(self) -> tuple[str, ...]:
        """Return the nodes of which a past is kept."""
        return tuple(self._pasts)

    def _past(self, node: str, now_s: float) -> _Past:
        past = self._pasts.get(node)
        if past is None:
            if len(self._pasts) >= self._most_nodes:
                self.forget(next(iter(self._pasts)))
            past = self._pasts[node] = _Past(since_s=now_s, at_s=now_s)
        self._pasts.move_to_end(node)
        return past

    def _templates(self, node: str, past: _Past, digest: LogDigest, now_s: float) -> Iterator[Unusual]:
        for told in digest.templates:
            shown = self._vocabulary.show(node, told.level, told.text)
            weight = _weight(told)
            if weight < ALERTING:
                continue
            omen = self._sequences.see(node, told.text, now_s) if told.is_new or told.burst > 0 else None
            if omen is not None:
                yield _omen(node, told, omen)
            elif told.is_new and not shown.is_known:
                yield from self._new(node, told, weight, shown.peers, is_learning=past.is_learning(now_s))
            elif told.burst > 0:
                times = f"{min(told.burst, 1e6):,.0f} times as often as usual"
                yield Unusual(node, BURST, told.text, told.level, weight, f"{node} writes {times}: {_quoted(told.text)}")
            else:
                yield from _again(node, past, told, weight, now_s)
            _note_alarming(past, told, now_s)

    def _new(self, node: str, told: LogTemplate, weight: float, peers: int, *, is_learning: bool) -> Iterator[Unusual]:
        others = max(self._vocabulary.nodes() - 1, 0)
        is_common = peers >= max(2, others // 5)
        score = weight - (PEERS_KNOW if is_common else 0.0)
        if score < ALERTING or (
            is_learning and told.level < ERROR and not (told.level == UNKNOWN and tells_of_crash(told.text))
        ):
            return
        known = f"{peers} of {others} others have it too" if peers else f"none of {others} others has it" if others else ""
        sentence = f"{node} wrote something new that tells of trouble: {_quoted(told.text)}" + (f" ({known})" if known else "")
        yield Unusual(node, NEW, told.text, told.level, score, sentence)


@dataclass(frozen=True, slots=True)
class _Fresh:
    """What came since the digest before, by counts that only grow within one life of a watch."""

    lines: int
    errors: int

    @classmethod
    def of(cls, past: _Past, digest: LogDigest) -> _Fresh:
        if digest.life != past.life or digest.lines < past.lines or digest.errors < past.errors:
            past.life, past.lines, past.errors = digest.life, 0, 0
        fresh = cls(digest.lines - past.lines, digest.errors - past.errors)
        past.lines, past.errors = digest.lines, digest.errors
        return fresh


def _weight(told: LogTemplate) -> float:
    """Return how much a line tells of trouble. Its words are judged here: what a node thinks of its own lines is not asked."""
    level = 3.0 if told.level >= ERROR else 1.5 if told.level == WARNING else 0.0
    return level + (1.5 if tells_of_failure(told.text) else 0.0)


def _again(node: str, past: _Past, told: LogTemplate, weight: float, now_s: float) -> Iterator[Unusual]:
    count, at_s = past.alarming.get(told.key, (told.count, now_s))
    if told.count > count and now_s - at_s > QUIET_S:
        sentence = f"{node} writes again, after {(now_s - at_s) / 60:,.0f} minutes: {_quoted(told.text)}"
        yield Unusual(node, AGAIN, told.text, told.level, weight / 2, sentence)


def _note_alarming(past: _Past, told: LogTemplate, now_s: float) -> None:
    before = past.alarming.get(told.key)
    # Known ones are told by turns: only a count that grew says that the line was written again.
    if before is None or told.count != before[0]:
        past.alarming[told.key] = (told.count, now_s)
        past.alarming.move_to_end(told.key)
    while len(past.alarming) > MOST_ALARMING:
        past.alarming.popitem(last=False)


def _errors(node: str, past: _Past, digest: LogDigest, fresh: _Fresh) -> Iterator[Unusual]:
    usual, errors = past.usual_errors, fresh.errors
    past.digests += 1
    past.usual_errors += (errors - usual) * max(SMOOTHING, 1 / past.digests)
    if past.digests <= LEAST_DIGESTS or errors < LEAST_ERRORS:
        return
    if errors - usual > DEVIATIONS * (usual + 1) ** 0.5:
        last = digest.error_lines[-1] if digest.error_lines else ""
        sentence = f"{node} wrote {errors:,} lines of errors since its last beat, where {usual:.1f} are usual"
        yield Unusual(node, ERRORS, last, ERROR, 3.0, sentence + (f"; the last: {_quoted(last)}" if last else ""))


def _explosion(node: str, past: _Past, digest: LogDigest) -> Iterator[Unusual]:
    was_full, past.was_full = past.was_full, digest.is_full
    if digest.is_full and not was_full:
        sentence = f"{node} writes more kinds of lines than can be told apart: it logs data, or is made to"
        yield Unusual(node, EXPLOSION, "", WARNING, 1.0, sentence)


def _omen(node: str, told: LogTemplate, omen: Omen) -> Unusual:
    what = ", then ".join(_quoted(text) for text in omen.pattern)
    sentence = f"{node} wrote what came before failures: {what}; {omen.failures} of {omen.occurrences} times a node then failed"
    return Unusual(node, OMEN, told.text, told.level, 6.0, sentence)


def _within_measure(node: str, past: _Past, findings: list[Unusual], now_s: float) -> Iterator[Unusual]:
    """Yield as many findings as a node may cause; in place of the first that is too much, one that says so."""
    past.left = min(MOST_FINDINGS, past.left + max(0.0, now_s - past.at_s) * FINDINGS_PER_S)
    past.at_s = now_s
    for finding in findings:
        if past.left < 1:
            return
        past.left -= 1
        if past.left < 1:
            yield Unusual(node, FLOOD, "", finding.level, 1.0, f"{node} writes unusual lines faster than they are told here")
            return
        yield finding


def _quoted(text: str) -> str:
    return f"“{text}”" if len(text) <= MOST_CHARACTERS else f"“{text[: MOST_CHARACTERS - 1]}…”"
