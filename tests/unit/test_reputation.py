"""Reputation, and a client over the rounds: what it counts, whom it frees, what is drawn of it."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import refold
from refold.bus.ledger import read_all
from refold.bus.memory import MemoryBus
from refold.cli.explain import Facts
from refold.cli.plotting import draw, lines, points_of
from refold.consumers import reputation
from refold.federation import Federation
from refold.schemas.canonical import decode
from refold.schemas.checks import Alert
from refold.schemas.codec import encode_integers
from refold.schemas.errors import NotFoundError, UsageError
from refold.schemas.keys import SigningKey
from refold.schemas.layout import Layout
from refold.schemas.reasons import ANOMALY, CONTENT, REASONS
from refold.testing import SteppedServer, craft_update, send_update

NAMES = [f"c{index}" for index in range(8)]
KEYS = {name: SigningKey.generate() for name in NAMES}


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    with MemoryBus() as bus:
        plan = refold.Plan(minimum=8, heartbeat_s=1.0, deadline_s=600.0)
        made = refold.create("memory:seen", {"w": np.zeros((30, 20), "f4")}, plan=plan, keys=tmp_path, partitions=1, bus=bus)
        for name in NAMES:
            made.enroll(name, KEYS[name].public)
        yield made


def play(federation: Federation, server: SteppedServer, rounds: range, bad: dict[str, float]) -> None:
    """Play rounds in which these clients send so many times what they should."""
    for round_ in rounds:
        for at, name in enumerate(NAMES):
            rng = np.random.default_rng([round_, at])
            change = (400 + rng.normal(0, 300, 600)) * bad.get(name, 1.0)
            chunks = tuple(encode_integers([change.astype(np.int32)], Layout.of(federation.genesis.schema)))
            send_update(federation, craft_update(federation, name, KEYS[name], chunks=chunks), name)
        server.settle()
        server.clock.advance(10.0)
        server.settle()
        assert federation.head == round_


def facts_of(federation: Federation) -> Facts:
    return Facts(read_all(federation.bus, federation.topics.accepted), read_all(federation.bus, federation.topics.rounds))


def alerts(federation: Federation) -> list[Alert]:
    with federation.bus.consumer() as consumer:
        consumer.assign([refold.bus.Place(federation.topics.alerts, 0)])
        return [decode(record.value or b"", Alert) for record in consumer.poll(0.0)]


@pytest.mark.parametrize("reason", sorted(REASONS))
def test_only_what_an_update_holds_counts_against_its_client(reason: str) -> None:
    after = reputation.after_refusal(1.0, (reason,))
    assert (after < 1.0) == (REASONS[reason] in (ANOMALY, CONTENT))


def test_who_was_wrongly_refused_is_as_good_as_new_within_three_rounds() -> None:
    value = reputation.after_refusal(1.0, ("norm",))
    for _ in range(3):
        value = reputation.after_acceptance(value)
    assert value > 0.9


def test_three_refusals_in_a_row_are_told_and_a_release_forgets_them(federation: Federation) -> None:
    with SteppedServer(federation) as server:
        server.settle()
        server.clock.advance(10.0)
        play(federation, server, range(1, 3), {"c3": 40.0})
        assert not [alert for alert in alerts(federation) if alert.kind == "reputation"]
        play(federation, server, range(3, 5), {"c3": 40.0})
        told = [alert for alert in alerts(federation) if alert.kind == "reputation"]
        assert [alert.subject for alert in told] == ["c3", "c3"]
        assert federation.roster().clients["c3"].reputation == 1 / 16
        verdicts = [e for _, e, _ in facts_of(federation).verdicts()]
        federation.ban("c3")
        federation.release("c3")
        server.settle()
        assert federation.roster().clients["c3"].reputation == 1.0
        assert [e for _, e, _ in facts_of(federation).verdicts()] == verdicts, "a release judges nothing again"
        play(federation, server, range(5, 6), {})
        assert federation.roster().clients["c3"].reputation == 1.0


def test_a_client_is_drawn_and_told_over_the_rounds(federation: Federation, tmp_path: Path) -> None:
    with SteppedServer(federation) as server:
        server.settle()
        server.clock.advance(10.0)
        play(federation, server, range(1, 3), {"c3": 40.0})
        play(federation, server, range(3, 5), {})
    points = points_of(federation.bus, federation.topics, facts_of(federation), "c3")
    assert [point.accepted for point in points] == [False, False, True, True]
    assert points[0].norm == pytest.approx(40, rel=0.1)
    assert points[-1].norm == pytest.approx(1, rel=0.1)
    assert all(point.cosine > 0.5 for point in points)
    assert [point.reputation for point in points] == [0.5, 0.25, 0.625, 0.8125]
    told = dict(lines(points))
    assert told["verdicts"].startswith("××··")
    assert told["norm"][0] == "█"
    first, again = tmp_path / "c3.svg", tmp_path / "again.svg"
    for path in (first, again):
        draw(points, "c3", path)
    assert b"<svg" in first.read_bytes()
    with pytest.raises(UsageError, match="cannot draw"):
        draw(points, "c3", tmp_path / "c3.txt")
    with pytest.raises(NotFoundError, match="nothing was judged"):
        draw([], "nobody", first)
