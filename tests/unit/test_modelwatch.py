"""Is the model getting worse: beyond noise and not within it, and what is done about it."""

from __future__ import annotations

import math

import numpy as np
import pytest

import refold
from refold.consumers.branches import Branches
from refold.consumers.detectors.recent import UPDATES, Recent
from refold.consumers.healing import AUTOMATIC, Healing, HealingPolicy, healed
from refold.consumers.hindsight import LEAST_ROUNDS
from refold.consumers.modelwatch import COLLAPSE, DECLINE, DIGEST, NOT_FINITE, ModelWatch
from refold.consumers.planning import plan_round
from refold.schemas.canonical import MAX_RECORD_BYTES, encode
from refold.schemas.errors import UsageError
from refold.schemas.events import RoundClosed
from refold.schemas.plans import settings
from refold.schemas.policies import ModelReported
from refold.schemas.updates import UNTOLD

POLICY = refold.Plan(rounds=200, seed=bytes(16)).policy()
CLIENTS = [f"c{number}" for number in range(10)]


def fed(watch: ModelWatch, accuracies: list[float], rng: np.random.Generator, *, first: int = 0, noise: float = 0.03) -> None:
    """Let ten clients report an accuracy about so good of each round."""
    for base, accuracy in enumerate(accuracies, first):
        if watch.alarm is None:
            for client in CLIENTS:
                watch.report(client, {"accuracy": accuracy + rng.normal(0, noise), "loss": 1.0})
            watch.close(base)


def learning(rounds: int) -> list[float]:
    return [0.95 - 0.85 * math.exp(-number / 8) for number in range(rounds)]


def test_training_that_goes_well_raises_no_alarm_in_a_hundred_runs(rng: np.random.Generator) -> None:
    for _ in range(100):
        watch = ModelWatch()
        fed(watch, learning(60), rng)
        assert watch.alarm is None


def test_a_collapse_is_seen_in_the_round_that_shows_it_and_the_one_before_is_the_last_good(rng: np.random.Generator) -> None:
    watch = ModelWatch()
    fed(watch, [*learning(30), 0.4], rng)
    assert watch.alarm is not None
    assert (watch.alarm.cause, watch.alarm.round, watch.alarm.last_good) == (COLLAPSE, 30, 29)


def test_a_slow_decline_is_seen_though_no_single_round_stands_out(rng: np.random.Generator) -> None:
    watch = ModelWatch()
    fed(watch, [*learning(40), *[0.945 - 0.01 * number for number in range(20)]], rng)
    assert watch.alarm is not None
    assert watch.alarm.cause == DECLINE
    assert 30 <= watch.alarm.last_good <= 46


def test_a_minority_that_lies_moves_no_reading(rng: np.random.Generator) -> None:
    watch = ModelWatch()
    for base, accuracy in enumerate(learning(40)):
        for at, client in enumerate(CLIENTS):
            lies = at < 4 and base > 20
            watch.report(client, {"accuracy": 0.0 if lies else accuracy + rng.normal(0, 0.03)})
        watch.close(base)
    assert watch.alarm is None


def test_one_odd_reading_of_few_clients_is_no_decline(rng: np.random.Generator) -> None:
    watch = ModelWatch()
    fed(watch, [*learning(30), 0.87, *[0.93] * 20], rng)
    assert watch.alarm is None


def test_a_loss_that_is_no_number_for_most_is_told_at_once_and_for_one_client_is_not() -> None:
    watch = ModelWatch()
    for client in CLIENTS:
        watch.report(client, {UNTOLD: 1.0} if client == "c0" else {"loss": 1.0})
    watch.close(0)
    assert watch.alarm is None
    for client in CLIENTS:
        watch.report(client, {UNTOLD: 1.0})
    watch.close(1)
    assert watch.alarm is not None
    assert (watch.alarm.cause, watch.alarm.last_good) == (NOT_FINITE, 0)


class Federation:
    """The fold that detection makes, with a model whose accuracy is set by hand."""

    def __init__(self, rng: np.random.Generator, **said: object) -> None:
        self.rng = rng
        self.branches = Branches.of(plan_round(POLICY, 1, (0,), ()))
        self.healing = Healing()
        self.healing.change(settings({"mode": AUTOMATIC, **said}))  # type: ignore[dict-item]
        self.went_back: list[tuple[int, int, str]] = []

    def round(self, accuracy: float) -> None:
        """Close a round, clients having said how good its parent is; go back where that is due."""
        head = self.branches.head
        for client in CLIENTS:
            self.healing.watch.report(client, {"accuracy": accuracy + self.rng.normal(0, 0.02)})
        plan = self.branches.plan_after(POLICY, (0,), (), ())
        event = RoundClosed(head + 1, head, (), "weighted_mean", "fedavg", (), "complete", plan)
        self.branches.close(event)
        self.healing.closed(event, self.branches)
        back = healed(self.healing, self.branches, Recent(), POLICY)
        if back is not None:
            progress = self.branches.progress
            self.branches.roll_back(back)
            self.healing.rolled_back(back, progress)
            self.went_back.append((back.abandoned, back.parent, back.cause))

    def rounds(self, accuracies: list[float]) -> None:
        for accuracy in accuracies:
            self.round(accuracy)


def test_a_trial_that_fails_is_followed_by_one_that_goes_back_further_until_a_person_is_asked(rng: np.random.Generator) -> None:
    federation = Federation(rng)
    federation.rounds(learning(30))
    for _ in range(6):
        federation.rounds([0.3])
        federation.rounds([0.94] * 2)
    assert [cause for *_, cause in federation.went_back] == [COLLAPSE] * 4
    progress = [federation.branches.nodes[parent].progress for _, parent, _ in federation.went_back]
    assert progress[0] == 29
    assert progress == sorted(progress, reverse=True)
    assert progress[3] < progress[2] < progress[1] < 30
    assert not federation.healing.may_act
    assert federation.healing.choice(federation.branches) is not None  # Which the alert names.


def test_what_held_is_tried_first_the_next_time(rng: np.random.Generator) -> None:
    federation = Federation(rng)
    federation.rounds(learning(30))
    federation.rounds([0.3, 0.94, 0.3])
    federation.rounds([0.94] * 20)
    assert federation.healing.margins[COLLAPSE] == 0
    assert federation.healing.trial is None
    assert federation.healing.failed == 0


@pytest.mark.parametrize("mode", ["ask", "never"])
def test_without_leave_nothing_is_done(rng: np.random.Generator, mode: str) -> None:
    federation = Federation(rng, mode=mode)
    federation.rounds([*learning(30), 0.3, 0.3])
    assert not federation.went_back
    assert (federation.healing.choice(federation.branches) is None) == (mode == "never")


def test_a_state_that_is_not_what_the_log_says_goes_back_to_the_last_that_is(rng: np.random.Generator) -> None:
    federation = Federation(rng)
    federation.rounds(learning(12))
    federation.healing.reported(ModelReported(12, "digest", None, "a step is gone", 10, bytes(16)))
    back = healed(federation.healing, federation.branches, Recent(), POLICY)
    assert back is not None
    assert (back.parent, back.cause) == (10, DIGEST)


def test_healing_cannot_name_more_clients_than_a_rollback_holds() -> None:
    recent = Recent()
    for round_ in range(1, 13):
        for number in range(400):
            recent.take(round_, f"c{number}", b"", accepted=True)
    assert sum(len(judged.features) for judged in recent.rounds.values()) <= UPDATES, "beyond one round, which finds nobody out"
    most = UPDATES // LEAST_ROUNDS
    branches = Branches.of(plan_round(POLICY, 1, (0,), ()))
    plan = branches.plan_after(POLICY, (0,), (), ())
    branches.close(RoundClosed(1, 0, (), "weighted_mean", "fedavg", (), "complete", plan))
    longest = tuple(f"{number:0>4}".ljust(200, "\U00020000") for number in range(most))
    assert len(encode(branches.rolled_back(POLICY, 0, "r" * 2000, cause=COLLAPSE, culprits=longest))) < MAX_RECORD_BYTES // 2


@pytest.mark.parametrize("said", [{"mode": "perhaps"}, {"moode": "ask"}])
def test_a_policy_that_there_is_not_is_refused(said: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="healing"):
        HealingPolicy.of(settings(said))  # type: ignore[arg-type]
