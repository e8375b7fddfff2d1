"""What is unusual in a node's log: against its past, its peers, and what came before failures; and what forgers can do."""

from __future__ import annotations

import random
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from refold.consumers.logsight.sight import (
    AGAIN,
    BURST,
    ERRORS,
    EXPLOSION,
    FLOOD,
    LEARNED_LINES,
    MOST_FINDINGS,
    NEW,
    OMEN,
    LogSight,
    Unusual,
)
from refold.consumers.logsight.vocabulary import Vocabulary
from refold.schemas.condition import ERROR, INFO, MAX_TEMPLATES, UNKNOWN, WARNING, LogDigest, LogTemplate

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

LIFE = b"life-one"


def template(text: str, level: int = ERROR, *, count: int = 1, is_new: bool = True, burst: float = 0.0) -> LogTemplate:
    return LogTemplate(text.encode()[:8].ljust(8), text, level, count, is_new, burst)


def digest(
    *templates: LogTemplate, lines: int = LEARNED_LINES, errors: int = 0, life: bytes = LIFE, **said: object
) -> LogDigest:
    made = LogDigest(life, lines, 0, errors, 0, len(templates), False, templates, (), ())
    return replace(made, **said)


def kinds_of(found: tuple[Unusual, ...]) -> list[str]:
    return [one.kind for one in found]


@pytest.fixture
def sight() -> LogSight:
    """Three nodes that are known since two minutes."""
    made = LogSight()
    for node in ("ann", "bob", "eve"):
        made.take(node, digest(), 0.0)
        made.take(node, digest(), 120.0)
    return made


def test_a_new_line_of_a_failure_is_told_once_in_a_plain_sentence(sight: LogSight) -> None:
    said = digest(template("ERROR the disk is gone: unit #"))
    (found,) = sight.take("ann", said, 130.0)
    assert (found.node, found.kind, found.text) == ("ann", NEW, "ERROR the disk is gone: unit #")
    assert found.sentence.startswith("ann wrote something new that tells of trouble: “ERROR the disk is gone: unit #”")
    assert sight.take("ann", said, 132.0) == ()


@pytest.mark.parametrize(
    ("told", "kinds"),
    [
        (template("WARN disk is slow", WARNING), [NEW]),
        (template("INFO cannot reach the label server", INFO), [NEW]),
        (template("Segmentation fault", UNKNOWN), [NEW]),
        (template("INFO checkpoint written", INFO), []),
        (template("hello", UNKNOWN), []),
        (template("ERROR known before", is_new=False), []),
    ],
)
def test_what_is_new_counts_by_level_and_words(sight: LogSight, told: LogTemplate, kinds: list[str]) -> None:
    assert kinds_of(sight.take("ann", digest(told), 130.0)) == kinds


def test_while_a_node_is_being_learned_only_errors_and_crashes_are_told() -> None:
    fresh = LogSight()
    told = (template("WARN slow", WARNING), template("INFO cannot open", INFO), template("unknown option", UNKNOWN))
    assert fresh.take("ann", digest(*told, lines=3), 0.0) == ()
    crash = (template("ERROR it broke"), template("Traceback (most recent call last):", UNKNOWN))
    assert kinds_of(fresh.take("ann", digest(*crash, lines=5), 2.0)) == [NEW, NEW]


def test_a_quiet_node_is_known_after_ten_minutes() -> None:
    fresh = LogSight()
    fresh.take("ann", digest(lines=3), 0.0)
    assert kinds_of(fresh.take("ann", digest(template("WARN slow", WARNING), lines=4), 601.0)) == [NEW]


def test_what_peers_have_shown_too_is_less_unusual(sight: LogSight) -> None:
    told = digest(template("WARN leader moved", WARNING))
    assert kinds_of(sight.take("ann", told, 130.0)) == [NEW]
    assert kinds_of(sight.take("bob", told, 130.0)) == [NEW]
    assert sight.take("eve", told, 130.0) == ()
    error = digest(template("ERROR lease lost"))
    sight.take("ann", error, 131.0)
    sight.take("bob", error, 131.0)
    (found,) = sight.take("eve", error, 131.0)
    assert "2 of 2 others have it too" in found.sentence


def test_a_node_that_starts_again_is_not_news_to_those_who_know_it(sight: LogSight) -> None:
    told = template("WARN listener is slow", WARNING)
    sight.take("ann", digest(told), 130.0)
    assert sight.take("ann", digest(told, lines=1, life=b"life-two"), 140.0) == ()


def test_a_burst_of_a_bad_line_is_told_and_one_of_an_ordinary_line_is_not(sight: LogSight) -> None:
    sight.take("ann", digest(template("WARN retry", WARNING), template("INFO fetched", INFO)), 130.0)
    bad = template("WARN retry", WARNING, count=300, is_new=False, burst=60.0)
    fine = template("INFO fetched", INFO, count=300, is_new=False, burst=60.0)
    (found,) = sight.take("ann", digest(bad, fine), 132.0)
    assert found.kind == BURST
    assert found.sentence == "ann writes 60 times as often as usual: “WARN retry”"


def test_a_known_error_that_comes_back_after_a_while_is_told_again(sight: LogSight) -> None:
    for at_s, count in ((130.0, 1), (140.0, 2), (430.0, 2)):
        found = sight.take("ann", digest(template("ERROR disk", count=count, is_new=count == 1)), at_s)
        assert kinds_of(found) == ([NEW] if at_s == 130.0 else []), "told by turns, or not quiet for long"
    assert kinds_of(sight.take("ann", digest(template("ERROR disk", count=3, is_new=False)), 460.0)) == [AGAIN]


def test_more_errors_than_usual_are_told_even_where_each_is_known(sight: LogSight) -> None:
    errors = 0
    for beat in range(30):
        errors += 2
        assert sight.take("ann", digest(errors=errors), 130.0 + 2 * beat) == ()
    (found,) = sight.take("ann", digest(errors=errors + 100, error_lines=("ERROR disk 7",)), 200.0)
    assert found.kind == ERRORS
    assert found.sentence == "ann wrote 100 lines of errors since its last beat, where 2.0 are usual; the last: “ERROR disk 7”"


def test_a_sequence_that_came_before_failures_is_an_omen_on_any_node(sight: LogSight) -> None:
    first, second = template("WARN disk is slow", WARNING), template("WARN write took #ms", WARNING, count=2)
    for node, at_s in (("ann", 200.0), ("bob", 300.0)):
        assert OMEN not in kinds_of(sight.take(node, digest(first), at_s))
        assert OMEN not in kinds_of(sight.take(node, digest(second), at_s + 10))
        sight.failed(node, at_s + 30)
    sight.take("eve", digest(first), 400.0)
    (found,) = sight.take("eve", digest(second), 410.0)
    assert found.kind == OMEN
    assert "“WARN disk is slow”, then “WARN write took #ms”; 2 of 2 times a node then failed" in found.sentence


def test_what_mostly_came_without_a_failure_is_no_omen(sight: LogSight) -> None:
    told = template("WARN disk is slow", WARNING, burst=9.0)
    for n in range(10):
        sight.take("ann", digest(told), 200.0 + 200 * n)
        if n in (2, 5):
            sight.failed("ann", 230.0 + 200 * n)
    assert OMEN not in kinds_of(sight.take("ann", digest(told), 9000.0))


def test_f40_a_flood_of_unusual_lines_is_told_as_one(sight: LogSight) -> None:
    found = [
        one
        for beat in range(50)
        for one in sight.take("eve", digest(*(template(f"ERROR {beat} {n}") for n in range(MAX_TEMPLATES))), 130.0 + beat)
    ]
    assert len(found) <= MOST_FINDINGS + 10
    assert kinds_of(tuple(found)).count(FLOOD) >= 1
    assert kinds_of(sight.take("ann", digest(template("ERROR real")), 181.0)) == [NEW], "others are heard as before"


def test_f40_endless_templates_of_one_node_displace_nobody_elses() -> None:
    vocabulary = Vocabulary(most_places=256, of_one_node=64)
    assert not vocabulary.show("ann", ERROR, "ERROR disk").is_known
    for n in range(10_000):
        vocabulary.show("eve", ERROR, f"ERROR forged {n}")
    assert vocabulary.show("ann", ERROR, "ERROR disk").is_known
    assert len(vocabulary._places) <= 65
    assert vocabulary.show("eve", ERROR, "ERROR forged 9999").is_known
    assert not vocabulary.show("eve", ERROR, "ERROR forged 1").is_known


def test_a_full_table_forgets_no_one_and_takes_no_more() -> None:
    vocabulary = Vocabulary(most_places=8, of_one_node=4)
    for node in ("a", "b", "c"):
        for n in range(4):
            vocabulary.show(node, ERROR, f"{node} {n}")
    assert vocabulary.show("a", ERROR, "a 3").is_known
    assert vocabulary.show("c", ERROR, "c 3").bit is None
    vocabulary.forget("a")
    assert vocabulary.show("c", ERROR, "c 3").bit is not None
    assert not vocabulary.show("a", ERROR, "a 3").is_known


def test_f40_forged_digests_say_nothing_of_others_and_never_raise(sight: LogSight) -> None:
    rng = random.Random(3)
    texts = ["", "[red]%s{0}$(id)[/red]", "<*>", "#", "ERROR x" * 28, "ann wrote", "”"]
    for n in range(2_000):
        told = tuple(
            LogTemplate(
                rng.randbytes(8),
                rng.choice(texts),
                rng.randrange(6),
                rng.choice([0, 1, 2**63 - 1]),
                rng.random() < 0.5,
                10.0**308,
            )
            for _ in range(rng.randrange(4))
        )
        forged = LogDigest(
            rng.choice([LIFE, b"\0" * 8]),
            *(rng.choice([0, 5, 2**63 - 1]) for _ in range(5)),
            rng.random() < 0.5,
            told,
            (),
            ("x",),
        )
        for found in sight.take("eve", forged, 130.0 + n * rng.choice([0, 1, 100])):
            assert found.node == "eve"
            assert found.sentence.startswith("eve ")
            assert found.sentence.isprintable()
            assert len(found.sentence) < 600
    assert sight.take("bob", digest(template("INFO all is well", INFO)), 1e6) == ()


def test_an_explosion_is_told_when_it_begins(sight: LogSight) -> None:
    assert kinds_of(sight.take("ann", digest(is_full=True), 130.0)) == [EXPLOSION]
    assert sight.take("ann", digest(is_full=True), 132.0) == ()


def test_a_node_that_is_forgotten_is_met_anew_and_the_longest_silent_goes_first() -> None:
    small = LogSight(most_nodes=2)
    for node in ("ann", "bob", "ann", "cy"):
        small.take(node, digest(template("ERROR disk")), 0.0)
    assert set(small._pasts) == {"ann", "cy"}
    small.forget("cy")
    small.forget("nobody")
    assert kinds_of(small.take("cy", digest(template("ERROR disk")), 1.0)) == [NEW]


def test_planted_failures_are_found_among_a_brokers_real_lines() -> None:
    """A small run of benchmarks/logs.py on the thinned sample, in which what is rare is many times as frequent."""
    from logs import SAMPLE, measure

    found = measure(SAMPLE, planted=60, seed=11)
    assert found["ordinary_lines"] > 5_000
    assert found["recall"] >= 0.9, found["missed"]
    assert found["false_alerts"] <= 10, found["false"]
    assert found["findings_by_phase"]["kill"] > 0
    assert found["findings_by_phase"]["freeze"] > 0
