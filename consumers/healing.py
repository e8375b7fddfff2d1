"""What is done about a model that gets worse: whether, how far back, and who is held to it. A fold over `accepted`.

The choice of a round to go back to learns from earlier ones. A *trial* is a rollback that the federation made by itself. It
failed if the model is found bad again before training is as far as it was; then the next one goes back further, twice as many
rounds and one. It held if training got further without an alarm; then the distance that was tried stays for the next time, and
each time it holds again it is halved. All of this follows from events of the log, so that a successor chooses alike.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from refold.consumers.branches import Branches
from refold.consumers.detectors.recent import Recent
from refold.consumers.hindsight import Culprit, JudgedRound, find_culprits
from refold.consumers.modelwatch import DECLINE, GOOD_WHEN_HIGH, Alarm, ModelWatch
from refold.schemas.errors import UsageError
from refold.schemas.events import RoundClosed, UpdateAccepted
from refold.schemas.plans import PlanPolicy, Settings
from refold.schemas.policies import ModelReported
from refold.schemas.rollback import RolledBack

AUTOMATIC, ASK, NEVER = "automatic", "ask", "never"
MODES = (AUTOMATIC, ASK, NEVER)
OPERATOR = "operator"
MOST_TRIALS = 3
"""So many trials that fail in a row, and a person is asked: whatever it is, going back does not mend it."""


@dataclass(frozen=True, slots=True)
class HealingPolicy:
    """Whether the federation goes back by itself.

    Parameters
    ----------
    mode
        ``automatic``, ``ask`` (an alert with the command to give) or ``never``.
    metric
        What is watched, such as ``accuracy`` or ``loss``; "" takes the first of accuracy and its like that clients report.
    ban
        Whether clients are banned whom hindsight finds out in the rounds that are left.
    """

    mode: str = ASK
    metric: str = ""
    ban: bool = True

    @classmethod
    def of(cls, said: Settings) -> HealingPolicy:
        """Return the policy of a record's settings.

        Raises
        ------
        UsageError
            A setting that there is not, or a value that it cannot have.
        """
        values = dict(said)
        unknown = sorted(values.keys() - {"mode", "metric", "ban"})
        if unknown:
            raise UsageError(f"healing has no setting {', '.join(unknown)}", hint="there are mode, metric and ban")
        policy = cls(str(values.get("mode", ASK)), str(values.get("metric", "")), bool(values.get("ban", True)))
        if policy.mode not in MODES:
            raise UsageError(f"healing's mode {policy.mode!r} is not one of {', '.join(MODES)}")
        return policy


@dataclass(frozen=True, slots=True)
class Trial:
    """A rollback that the federation made by itself: how far before the last good round it went, and how far training was."""

    cause: str
    margin: int
    progress: int


@dataclass(frozen=True, slots=True)
class Choice:
    """What is to be done now: go back to `parent` for an alarm, `margin` trained rounds before the last good one."""

    alarm: Alarm
    parent: int
    margin: int

    @property
    def reason(self) -> str:
        """What the log says of it."""
        further = f", {self.margin} rounds before the last good one" if self.margin else ""
        return f"{self.alarm.evidence}; back to round {self.parent}{further}"


@dataclass(slots=True)
class Healing:
    """The state that choices depend on.

    Parameters
    ----------
    watch, own
        What clients report of the model, and what the server found out itself.
    margins
        By cause, how many trained rounds before the last good one the next trial goes.
    failed
        Trials that failed in a row.
    """

    policy: HealingPolicy = field(default_factory=HealingPolicy)
    watch: ModelWatch = field(default_factory=ModelWatch)
    own: ModelWatch = field(default_factory=ModelWatch)
    margins: dict[str, int] = field(default_factory=dict)
    trial: Trial | None = None
    failed: int = 0

    def change(self, said: Settings) -> None:
        """Take a change of policy in; settings that no present version knows change nothing."""
        try:
            policy = HealingPolicy.of(said)
        except UsageError:
            return
        if policy.metric != self.policy.metric:
            self.watch = ModelWatch(policy.metric)
        self.policy = policy

    def accepted(self, event: UpdateAccepted, newest: int, *, kind: str) -> None:
        """Take in what a client reports of the newest round's model; `kind` of update says it."""
        if event.origin.base_round == newest and event.origin.kind == kind:
            self.watch.report(event.origin.client, dict(event.metrics))

    def reported(self, event: ModelReported) -> None:
        """Take in what the server found out itself."""
        if event.fault:
            self.own.fault(event.round, event.last_good, event.fault)
        else:
            value = float("nan") if event.value is None else event.value
            self.own.take_value(event.round, value, good_when_high=event.metric in GOOD_WHEN_HIGH)

    @property
    def alarm(self) -> Alarm | None:
        """What is wrong, if anything is."""
        return self.own.alarm or self.watch.alarm

    def closed(self, event: RoundClosed, branches: Branches) -> None:
        """Take a round in; `branches` has it already."""
        self.watch.close(event.parent)
        if self.trial is not None and self.alarm is None and branches.progress > self.trial.progress:
            self.margins[self.trial.cause] = self.trial.margin // 2
            self.trial, self.failed = None, 0

    def rolled_back(self, event: RolledBack, progress: int) -> None:
        """Take a rollback in; `progress` is how far training had got on the branch that is left."""
        self.watch.back_to(event.parent)
        self.own.back_to(event.parent)
        if event.cause == OPERATOR:
            self.trial, self.failed = None, 0
            return
        is_again = self.trial is not None
        self.failed += is_again
        margin = self._margin(event.cause)
        self.margins[event.cause] = margin
        self.trial = Trial(event.cause, margin, max(progress, self.trial.progress if self.trial else 0))

    def _margin(self, cause: str) -> int:
        margin = self.margins.get(cause, 1 if cause == DECLINE else 0)
        return 2 * max(margin, self.trial.margin) + 1 if self.trial is not None else margin

    @property
    def last_good(self) -> int:
        """The last round before the model got worse, or the newest that was found good."""
        alarm = self.alarm
        return alarm.last_good if alarm is not None else max(self.watch.last_good, self.own.last_good)

    @property
    def may_act(self) -> bool:
        """Whether the next alarm is answered without a person."""
        return self.policy.mode == AUTOMATIC and self.failed < MOST_TRIALS

    def choice(self, branches: Branches) -> Choice | None:
        """Return what is to be done, or None where nothing is wrong or nobody wants to know."""
        alarm = self.alarm
        if alarm is None or self.policy.mode == NEVER:
            return None
        margin = self._margin(alarm.cause)
        parent = branches.before(alarm.last_good, margin)
        return Choice(alarm, parent, margin) if parent < branches.head else None


def culprits_of(recent: Recent, parent: int) -> list[Culprit]:
    """Return who is found out, in hindsight, in the rounds after `parent` that are still remembered."""
    rounds = []
    for round_, judged in recent.rounds.items():
        clients = tuple(sorted(client for client, accepted in judged.accepted.items() if accepted))
        if round_ > parent and clients:
            rounds.append(JudgedRound(round_, clients, tuple(judged.features_of(client) for client in clients)))
    return find_culprits(rounds)


def healed(healing: Healing, branches: Branches, recent: Recent, policy: PlanPolicy) -> RolledBack | None:
    """Return the rollback that is due, with those who are held to it; None where there is none, or a person has to say."""
    choice = healing.choice(branches) if healing.may_act else None
    if choice is None:
        return None
    found = culprits_of(recent, choice.parent) if healing.policy.ban else []
    why = choice.reason
    if found:
        why += "; banned: " + ", ".join(f"{c.client} ({c.refused} of {c.rounds} rounds: {c.reasons[0]})" for c in found[:8])
    names = tuple(culprit.client for culprit in found)
    return branches.rolled_back(policy, choice.parent, why[:2000], cause=choice.alarm.cause, culprits=names)
