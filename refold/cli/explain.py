"""What the logs say of one round, update or client: as an object, and as lines for people."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from refold.bus.ledger import Entry
from refold.cli.output import facts, short, table, time_text
from refold.consumers.roster import Roster
from refold.jsonable import to_json
from refold.producers.lineage import Lineage
from refold.schemas.events import (
    Genesis,
    Regridded,
    RolledBack,
    RoundClosed,
    RoundCommitted,
    UpdateAccepted,
    UpdateRejected,
)
from refold.schemas.plans import Everyone, RoundPlan

Verdict = UpdateAccepted | UpdateRejected
Explained = tuple[dict[str, Any], list[str]]


class Facts:
    """Both logs, with where each event lies."""

    def __init__(self, accepted: list[Entry], rounds: list[Entry]) -> None:
        self.accepted = [(i, event, entry.commit.time_ms) for entry in accepted for i, event in entry.indexed()]
        self.rounds = [(i, event, entry.commit.time_ms) for entry in rounds for i, event in entry.indexed()]
        self.roster: Roster | None = None
        for entry in accepted:
            genesis = entry.events[0] if entry.events else None
            if self.roster is None and isinstance(genesis, Genesis):
                self.roster = Roster.of(genesis)
            if self.roster is not None:
                self.roster.fold(entry)
        self.clients = set(self.roster.clients) if self.roster is not None else set()

    def verdicts(self) -> Iterable[tuple[int, Verdict, int]]:
        """Yield every verdict on an update that someone is held to, with its index and time."""
        return ((i, e, ms) for i, e, ms in self.accepted if isinstance(e, UpdateAccepted | UpdateRejected))

    def updates_with(self, digits: str) -> set[bytes]:
        """Return the digests of updates that begin with these digits."""
        return {e.origin.digest for _, e, _ in self.verdicts() if e.origin.digest.hex().startswith(digits)}

    def closed(self, round_: int) -> tuple[int, RoundClosed, int] | None:
        """Return how a round was closed."""
        return next(((i, e, ms) for i, e, ms in self.accepted if isinstance(e, RoundClosed) and e.round == round_), None)

    def committed(self, round_: int) -> tuple[int, RoundCommitted, int] | None:
        """Return how a round was made."""
        return next(((i, e, ms) for i, e, ms in self.rounds if isinstance(e, RoundCommitted) and e.round == round_), None)


def explain_round(found: Facts, lineage: Lineage, round_: int) -> Explained:
    """Say what a round is, who is in it, and what it asks for next."""
    made = found.committed(round_)
    if made is None:
        return _initial(found, lineage)
    index, event, time_ms = made
    closing = found.closed(round_)
    total = sum(member.weight for member in event.members) or 1
    refused = [e for _, e, _ in found.verdicts() if isinstance(e, UpdateRejected) and e.origin.base_round + 1 == round_]
    lines = [
        *facts(
            [
                ("round", round_),
                ("parent", event.parent),
                ("outcome", event.outcome + (f": {event.reason}" if event.reason else "")),
                ("made", f"{time_text(time_ms)}, event {index} of rounds"),
                ("closed", _closing(found, round_)),
                ("rule", f"{closing[1].rule}, {closing[1].optimizer}" if closing else "-"),
                ("state", event.state_digest.hex()),
                ("parameters", event.parameters_digest.hex()),
                ("step", _size(event)),
            ]
        ),
        "",
        *table(
            ("member", "weight", "share", "update"),
            [(m.client, m.weight, f"{100 * m.weight / total:.1f} %", short(m.digest)) for m in event.members],
        ),
    ]
    if refused:
        lines += ["", *table(("refused", "reasons", "update"), [_refused(event) for event in refused])]
    lines += ["", f"round {event.next_plan.round} then asks for:", *_indented(_plan(event.next_plan))]
    told = {"index": index, "time_ms": time_ms, **to_json(event), "closed": to_json(closing[1]) if closing else None}
    return {**told, "refused": [to_json(event) for event in refused]}, lines


def _closing(found: Facts, round_: int) -> str:
    """Return what `accepted` says of a round's making."""
    for index, event, _ in found.accepted:
        if isinstance(event, RoundClosed) and event.round == round_:
            return f"{event.closed_by}, event {index} of accepted"
        if isinstance(event, RolledBack) and event.round == round_:
            return f"by a rollback from round {event.abandoned} ({event.cause}), event {index} of accepted"
        if isinstance(event, Regridded) and event.round == round_:
            return f"by going over to a coarser lattice after round {event.overflowed}, event {index} of accepted"
    return "not in accepted"


def explain_update(found: Facts, digest: bytes) -> Explained:
    """Say whose an update is, when it came, what was decided and why."""
    verdicts = [(i, e, ms) for i, e, ms in found.verdicts() if e.origin.digest == digest]
    rounds = [e for _, e, _ in found.accepted if isinstance(e, RoundClosed) and any(m.digest == digest for m in e.members)]
    told: dict[str, Any] = {"digest": digest.hex(), "verdicts": [], "rounds": [closed.round for closed in rounds]}
    lines: list[str] = [f"update {digest.hex()}"]
    for index, event, time_ms in verdicts:
        told["verdicts"].append({"index": index, "time_ms": time_ms, "type": type(event).__name__, **to_json(event)})
        lines += ["", *facts(_verdict(index, event, time_ms)), *_scores(event)]
    for closed in rounds:
        weight = next(member.weight for member in closed.members if member.digest == digest)
        total = sum(member.weight for member in closed.members) or 1
        share = "kept, not applied" if not weight else f"weight {weight} of {total}, {100 * weight / total:.1f} %"
        lines += ["", f"in round {closed.round}: {share}"]
    return told, lines


def _initial(found: Facts, lineage: Lineage) -> Explained:
    index, genesis, time_ms = next((i, e, ms) for i, e, ms in found.accepted if isinstance(e, Genesis))
    rows = [(t.name, t.dtype, "×".join(map(str, t.shape)) or "-", t.exponent, t.rule) for t in genesis.schema.tensors]
    lines = [
        *facts(
            [
                ("round", "0, the initial model"),
                ("federation", genesis.federation),
                ("made", time_text(time_ms)),
                ("state", genesis.state_digest.hex()),
                ("parameters", genesis.parameters_digest.hex()),
                ("optimizer", _settings(genesis.optimizer, genesis.optimizer_settings)),
                ("defence", genesis.defence.mode),
                ("snapshots", f"every {genesis.snapshots.every_rounds} rounds, {genesis.snapshots.keep_last} kept"),
                ("newest", lineage.head),
            ]
        ),
        "",
        *table(("tensor", "dtype", "shape", "exponent", "rule"), rows),
        "",
        f"round {genesis.first_plan.round} then asks for:",
        *_indented(_plan(genesis.first_plan)),
    ]
    return {"index": index, "time_ms": time_ms, **to_json(genesis)}, lines


def _plan(plan: RoundPlan) -> list[tuple[str, object]]:
    share = "every client" if plan.select_below >= Everyone else f"{100 * plan.select_below / Everyone:.1f} % of the clients"
    share += f" with {' and '.join(map(str, plan.where))}" if plan.where else ""
    minimum = f"{plan.minimum} updates" + (f", closed as soon as there are {plan.buffer}" if plan.buffer else "")
    lines: list[tuple[str, object]] = [
        ("from", share + (", who also evaluate" if plan.evaluate else "")),
        ("minimum", minimum),
        ("deadline", f"{plan.deadline_ms / 1000:g} s" if plan.deadline_ms else "none"),
        ("codec", f"{plan.codec}, k {' '.join(map(str, plan.exponents[:12]))}{' …' if len(plan.exponents) > 12 else ''}"),
    ]
    return [*lines, ("config", _settings("", plan.config))] if plan.config else lines


def _settings(name: str, pairs: Iterable[tuple[str, object]]) -> str:
    said = " ".join(f"{key}={value}" for key, value in pairs)
    return f"{name} {said}".strip()


def _indented(pairs: list[tuple[str, object]]) -> list[str]:
    return [f"  {line}" for line in facts(pairs)]


def _size(event: RoundCommitted) -> str:
    if event.step is None:
        return "none"
    slots = f" and {event.slots_step.size_bytes:,} of the optimizer" if event.slots_step else ""
    return f"{event.step.size_bytes:,} bytes{slots}"


def _refused(event: UpdateRejected) -> tuple[str, str, str]:
    return event.origin.client, ",".join(event.reasons), short(event.origin.digest)


def _verdict(index: int, event: Verdict, time_ms: int) -> list[tuple[str, object]]:
    origin = event.origin
    said = "accepted" if isinstance(event, UpdateAccepted) else f"rejected: {', '.join(event.reasons)}"
    lines: list[tuple[str, object]] = [
        ("verdict", said),
        ("when", f"{time_text(time_ms)}, event {index} of accepted"),
        ("client", f"{origin.client}, key {origin.key_id.hex()}"),
        ("session", f"{origin.session_index}/{origin.session_nonce.hex()}, sequence {origin.sequence}"),
        ("source", f"updates {origin.partition}/{origin.offset}"),
        ("kind", f"{origin.kind} for round {origin.base_round + 1}, from round {origin.base_round}"),
    ]
    if isinstance(event, UpdateRejected):
        times = [("times", f"{event.count}, to offset {event.last_offset}")] if event.count > 1 else []
        return [*lines, *times, ("detail", event.detail or "-")]
    metrics = _settings("", ((name, f"{value:.6g}") for name, value in event.metrics))
    lines += [("examples", event.num_examples), ("weight", event.weight), ("metrics", metrics or "-")]
    return [*lines, ("payload", f"{event.payload.size_bytes:,} bytes, {event.codec}" if event.payload else "none")]


def _scores(event: Verdict) -> list[str]:
    """Return what each detector said; above its threshold alone refuses nobody where others do not support it."""
    above = "ANOMALY" if isinstance(event, UpdateRejected) else "above, alone"
    rows = [
        (s.detector, s.version, s.value, s.threshold, above if s.value > s.threshold else "", s.evidence) for s in event.scores
    ]
    return ["", *table(("detector", "version", "score", "threshold", "", "evidence"), rows)] if rows else []
