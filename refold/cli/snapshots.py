"""``refold snapshots``: which are kept and why, and how long recovery takes."""

from __future__ import annotations

import time
from dataclasses import dataclass

import click

from refold.cli.options import Common, common
from refold.cli.output import note, number_of, say, say_json, short, size_text, table, time_text
from refold.consumers.snapshot_facts import SnapshotFacts
from refold.federation import Federation
from refold.producers.history import History
from refold.refs import resolve_round
from refold.schemas.events import SnapshotTaken


@dataclass(frozen=True, slots=True)
class Prediction:
    """How a round is recovered: from which known round, over how many steps, and how long it should take; `measured_s` is how
    long it took, where that was tried.
    """

    round: int
    start: int
    steps: int
    read_bytes: int
    predicted_s: float
    measured_s: float | None


@click.command(short_help="List the snapshots, and say how long recovery takes.")
@common
@click.argument("refs", nargs=-1, metavar="[REF]...")
@click.option("--measure", is_flag=True, help="Recover the rounds, too, and say how long it really took.")
def snapshots(common: Common, refs: tuple[str, ...], measure: bool) -> None:
    """List the snapshots that are kept: round, time, size, digest, why. A snapshot only saves time; the log holds its digest.

    For each REF (the newest round if none is given), says how long recovering it should take on this machine: rates are
    measured by reading the newest snapshot, and the step of its neighbour, once.
    """
    with common.federation() as federation:
        history = federation.history()
        try:
            why = _reasons(federation, history)
            kept = [taken for _, taken in sorted(history.snapshots.items())]
            rounds = [resolve_round(ref, history.lineage) for ref in refs or ("HEAD",)] if kept else []
            clock = _Stopwatch(history) if kept else None
            found = [_predicted(history, clock, round_, measure=measure) for round_ in rounds if clock is not None]
        finally:
            history.close()
    if common.json:
        for taken in kept:
            say_json(_object(taken, why.get(taken.round, "")))
        for one in found if refs or measure else ():
            say_json({name: getattr(one, name) for name in Prediction.__dataclass_fields__})
        return
    rows = [
        (t.round, time_text(t.time_ms), size_text(_size_bytes(t)), short(t.state_digest), why.get(t.round, "about to go"))
        for t in kept
    ]
    for line in table(("round", "taken", "size", "state", "kept as"), rows):
        say(line)
    for one in found:
        note(_told(one))


def _reasons(federation: Federation, history: History) -> dict[int, str]:
    """Return why each snapshot is kept, by the policy that holds."""
    facts = SnapshotFacts(federation.bus, federation.topics, federation.genesis)
    try:
        facts.follow()
        return facts.kept(history)
    finally:
        facts.close()


class _Stopwatch:
    """Rates of this machine: loading and checking a snapshot by the byte, and applying a step by the byte and at all."""

    def __init__(self, history: History) -> None:
        self._history = history
        newest = max(history.snapshots)
        size = _size_bytes(history.snapshots[newest])
        history.rebuild(newest, start=newest)  # The first read of anything pays for much that comes once.
        self.load_s = self._time(newest, newest) / max(1, size)
        neighbour = self._neighbour(newest)
        self.step_s = 0.0
        if neighbour is not None:
            path = history.find_path(neighbour, start=newest)
            extra_s = self._time(neighbour, newest) - self.load_s * size
            self.step_s = max(0.0, extra_s) / max(1, len(path.legs))

    def _time(self, round_: int, start: int) -> float:
        begun_s = time.perf_counter()
        self._history.rebuild(round_, start=start)
        return time.perf_counter() - begun_s

    def _neighbour(self, round_: int) -> int | None:
        """Return a round one step away, if there is any: its child, else its parent."""
        lineage = self._history.lineage
        if round_ + 1 in lineage.rounds and lineage.rounds[round_ + 1].parent == round_:
            return round_ + 1
        return lineage.rounds[round_].parent if round_ in lineage.rounds else None


def _predicted(history: History, rates: _Stopwatch, round_: int, *, measure: bool) -> Prediction:
    path = history.find_path(round_)
    taken = history.snapshots.get(path.start)
    size = _size_bytes(taken) if taken is not None else 0
    predicted_s = size * rates.load_s + len(path.legs) * rates.step_s
    measured_s = None
    if measure:
        begun_s = time.perf_counter()
        history.rebuild(round_)
        measured_s = time.perf_counter() - begun_s
    return Prediction(round_, path.start, len(path.legs), path.read_bytes, predicted_s, measured_s)


def _told(one: Prediction) -> str:
    said = (
        f"round {one.round}: about {one.predicted_s * 1000:.3g} ms, from round {one.start} over {number_of(one.steps, 'step')}"
    )
    if one.measured_s is None:
        return f"{said}, {size_text(one.read_bytes)} read"
    return f"{said}; took {one.measured_s * 1000:.3g} ms, {one.measured_s / max(one.predicted_s, 1e-9):.2f} times that"


def _object(taken: SnapshotTaken, why: str) -> dict[str, object]:
    return {
        "round": taken.round,
        "time_ms": taken.time_ms,
        "size_bytes": _size_bytes(taken),
        "state": taken.state_digest.hex(),
        "parameters": taken.parameters_digest.hex(),
        "attempt": taken.attempt.hex(),
        "kept_as": why,
    }


def _size_bytes(taken: SnapshotTaken) -> int:
    return taken.parameters.size_bytes + (taken.slots.size_bytes if taken.slots else 0)
