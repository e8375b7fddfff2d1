"""A checker must be able to fail: bugs are planted in a server of this process, and each is found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from faultkit.buses import AFTER
from faultkit.faults import Fault
from faultkit.processes import wait_until
from faultkit.world import GROUPS, World

import refold
from refold.consumers import aggregation, detection, intake
from refold.consumers.audit import Audit
from refold.consumers.coverage import Coverage
from refold.schemas.events import Receipt, UpdateAccepted


def holes_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Believe that nothing lies between two records of `checked`."""
    monkeypatch.setattr(Coverage, "hole_before", lambda self, previous: None)


def position_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cover what still waits for its verdict."""
    after = Coverage.after
    monkeypatch.setattr(Coverage, "after", lambda self, judged: after(self, judged | self.pending))


def no_de_duplication(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take every update for a new one."""
    monkeypatch.setattr(intake, "refusal", lambda *_, **_settings: "")


def receipts_of_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tell clients of updates that are not accepted that they are."""
    receipts_of = aggregation._receipts

    def receipts(entry: Any) -> tuple[Receipt, ...]:
        found = receipts_of(entry)
        accepted = any(isinstance(event, UpdateAccepted) for event in entry.events)
        return (*found, Receipt("c0", bytes(32), "accepted")) if accepted else found

    monkeypatch.setattr(aggregation, "_receipts", receipts)


def verdicts_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write all events of a ruling but the last verdict before the round's."""
    events_of = detection.events_of

    def some_of(*args: Any) -> list[object]:
        events = events_of(*args)
        refused = [event for event in events if not isinstance(event, UpdateAccepted) and hasattr(event, "origin")]
        return [event for event in events if event not in refused]

    monkeypatch.setattr(detection, "events_of", some_of)


PLANTED: dict[Callable[[pytest.MonkeyPatch], None], str] = {
    holes_accepted: "covers",
    position_ahead: "covers",
    no_de_duplication: "accepted 2 times",
    receipts_of_nothing: "told accepted",
    verdicts_left_out: "covers",
}

UNSEEN_BY_THE_LOG = (holes_accepted, position_ahead)
"""What was deleted without a verdict is known to nobody but the checker's archive of all that was ever sent."""


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_a_planted_bug_is_found(world: World, plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch):
    world.found(clients=3, deadline_s=1.0, partitions=1)
    plant(monkeypatch)
    losing = Lossy(plant is holes_accepted)
    bus = world.place.open(drop=losing)
    with refold.connect(world.place.url, bus=bus) as federation, federation.serve(GROUPS) as server:
        # One client dies after sending, so that a repeat comes while the round still waits for the others.
        world.train("c0", queue=[Fault("updates/ClientUpdate", AFTER)])
        wait_until(lambda: world.check().updates >= 2, "the repeat", tend=world.tend, pause_s=0.1)
        for name in world.clients[1:]:
            world.train(name)
        wait_until(lambda: found(world, PLANTED[plant]), "what the bug does", tend=lambda: server.wait(0.0), pause_s=0.1)
    if plant not in UNSEEN_BY_THE_LOG:
        assert [finding for finding in Audit(world.fed.bus, world.fed.topics).run() if finding.is_broken]


def found(world: World, what: str) -> bool:
    """Whether the checker sees it."""
    return any(what in violation for violation in world.check().violations)


class Lossy:
    """Loses the second `Checked`, or nothing."""

    def __init__(self, loses: bool) -> None:
        self._left = 2 if loses else 0

    def __call__(self, point: str, value: bytes | None) -> bool:
        if point != "checked/Checked" or not self._left:
            return False
        self._left -= 1
        return self._left == 0
