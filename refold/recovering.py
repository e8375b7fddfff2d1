"""Going back to an earlier round, and going on from there."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from refold.bus.ledger import read_all
from refold.bus.payloads import PayloadReader
from refold.consumers.features import Features
from refold.consumers.hindsight import Culprit, JudgedRound, find_culprits
from refold.opened import Opened
from refold.producers.lineage import Lineage
from refold.schemas.canonical import Scalar
from refold.schemas.checks import BanClient
from refold.schemas.errors import NotFoundError, UsageError
from refold.schemas.events import RoundClosed, UpdateAccepted
from refold.schemas.plans import ConfigSpan, Settings, settings
from refold.schemas.rollback import Calibration, RollBack

WORK = 0.05
"""Share of the honest clients' lost work that a repair asks for again, if nothing else is said."""

Setting = Scalar | tuple[float, float]


@dataclass(frozen=True, slots=True)
class Repair:
    """What is to be done after clients spoilt a model.

    Parameters
    ----------
    culprits
        They are banned.
    parent, abandoned
        The round to go back to, the last one that they have no part in, and the one that is the newest now.
    lost
        Updates of others that were applied in the rounds between.
    calibration
        How what these had taught is learnt again; None where nothing of it is asked for.
    """

    culprits: tuple[str, ...]
    parent: int
    abandoned: int
    lost: int
    calibration: Calibration | None


class Recovering(Opened):
    """What an operator does about a model that has itself failed."""

    def roll_back(
        self, round_: int, reason: str = "rolled back by the operator", *, calibration: Calibration | None = None
    ) -> bytes:
        """Let training go on from an earlier round; return the command's id. Needs the operator's key.

        A round is opened whose parent is that one and whose state is that one's; nothing is deleted, and no number is used
        again. Updates that clients made from the rounds that are left are refused as such, without blame.

        Parameters
        ----------
        calibration
            How training goes on at first; see `plan_repair`. None goes on as it did from that round.
        """
        return self.command(RollBack(round_, reason, calibration))

    def plan_repair(
        self,
        culprits: Collection[str],
        *,
        to: int | None = None,
        work: float = WORK,
        per_round: int = 1,
        config: Mapping[str, Setting] | None = None,
    ) -> Repair:
        """Work out how to take out of the model what some clients put in, and change nothing.

        Parameters
        ----------
        to
            The round to go back to; None takes the last one on which the culprits had no influence.
        work
            Share of the work that the others' updates since then took, to be asked for again in calibration rounds.
        per_round
            Clients asked in each of these rounds. One at a time is the most that a piece of work can teach.
        config
            What their training is told in these rounds: values, or a pair that is gone through in a line from the first round
            to the last. What works (benchmarks/healing.py) are small batches and a learning rate that falls to nearly nothing.

        Raises
        ------
        NotFoundError
            None of them ever had a part in the model.
        """
        rounds = self._closed_rounds()
        history = self.history()
        history.close()
        past = sorted(history.lineage.past() & rounds.keys())
        spoilt = [number for number in past if any(m.weight and m.client in culprits for m in rounds[number].members)]
        if to is None and not spoilt:
            raise NotFoundError(
                "none of these clients has a part in the model",
                client=", ".join(sorted(culprits)),
                hint="`refold show NAME` says what the log has of a client",
            )
        parent = rounds[spoilt[0]].parent if to is None else to
        lost = [m for n in past if n > parent for m in rounds[n].members if m.weight and m.client not in culprits]
        trainings = calibration_for(len(lost), work=work, per_round=per_round, settings=config or {}) if work else None
        return Repair(tuple(sorted(culprits)), parent, history.lineage.head, len(lost), trainings)

    def repair(self, plan: Repair, reason: str = "repaired by the operator") -> list[bytes]:
        """Ban the culprits, go back and calibrate; return the commands' ids. Needs the operator's key.

        The commands are taken in this order. A crash between them leaves the culprits banned and the model as it was: call it
        again.
        """
        bans = [self.command(BanClient(client, reason)) for client in plan.culprits]
        return [*bans, self.roll_back(plan.parent, reason, calibration=plan.calibration)]

    def culprits(self) -> list[Culprit]:
        """Judge every round of the model's past by the features in the log; return who would have been refused throughout."""
        history = self.history()
        history.close()
        return find_culprits(self._judged(round_, updates) for round_, updates in self._applied(history.lineage))

    def _judged(self, round_: int, updates: list[UpdateAccepted]) -> JudgedRound:
        found = [(update, features) for update in updates if (features := self._features_of(update)) is not None]
        clients, read = tuple(update.origin.client for update, _ in found), tuple(features for _, features in found)
        return JudgedRound(round_, clients, read, tuple(dict(update.metrics) for update, _ in found))

    def _applied(self, lineage: Lineage) -> Iterable[tuple[int, list[UpdateAccepted]]]:
        """Yield the rounds of the model's past with the updates that they took in."""
        past, open_ = lineage.past(), {}
        for event in self._accepted_events():
            if isinstance(event, UpdateAccepted) and event.payload is not None:
                open_[event.origin.digest] = event
            elif isinstance(event, RoundClosed):
                members = [open_.pop(member.digest) for member in event.members if member.digest in open_]
                if event.round in past:
                    yield event.round, members

    def _closed_rounds(self) -> dict[int, RoundClosed]:
        return {event.round: event for event in self._accepted_events() if isinstance(event, RoundClosed)}

    def _accepted_events(self) -> Iterable[object]:
        for entry in read_all(self.bus, self.topics.accepted):
            yield from entry.events

    def _features_of(self, event: UpdateAccepted) -> Features | None:
        if event.features is None:
            return None
        if event.features.inline is not None:
            return Features.unpack(event.features.inline)
        reader = PayloadReader(self.bus, self.topics.features)
        try:
            return Features.unpack(reader.read_bytes(event.features))
        finally:
            reader.close()


def calibration_for(
    trainings: int, *, work: float = WORK, per_round: int = 1, settings: Mapping[str, Setting]
) -> Calibration | None:
    """Return the calibration that takes a share of so many trainings; None where that comes to less than a round.

    Raises
    ------
    UsageError
        A share that is not above 0 to 1, or no client in a round.
    """
    if not 0 < work <= 1:
        raise UsageError(f"work {work} is not above 0 and at most 1")
    if per_round < 1:
        raise UsageError(f"{per_round} clients in a round train nothing")
    rounds = int(work * trainings + 1e-9) // per_round
    return Calibration(rounds, per_round, _spans(rounds, settings)) if rounds else None


def _spans(rounds: int, wanted: Mapping[str, Setting]) -> tuple[ConfigSpan, ...]:
    spans: list[ConfigSpan] = []
    for number in range(1, rounds + 1):
        at = (number - 1) / max(1, rounds - 1)
        now: Settings = settings({name: _value_at(value, at) for name, value in wanted.items()})
        if not spans or spans[-1].config != now:
            spans.append(ConfigSpan(number, now))
    return tuple(spans)


def _value_at(value: Setting, at: float) -> Scalar:
    if not isinstance(value, tuple):
        return value
    first, last = value
    return first if first == last else float(first + (last - first) * at)
