"""A node's digest of its log: what is told, how often, and how much of it."""

from __future__ import annotations

import logging
import random

import pytest

from refold.bus.clock import ManualClock
from refold.producers.logs.handler import WatchHandler
from refold.producers.logs.watch import LogWatch
from refold.schemas.canonical import encode
from refold.schemas.condition import ERROR, INFO, WARNING, Condition, LogDigest
from refold.schemas.updates import Heartbeat

SIZE = 1300


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def watch(clock: ManualClock) -> LogWatch:
    return LogWatch(clock=clock)


def told(watch: LogWatch, size: int = SIZE) -> LogDigest:
    """Return a digest that was received."""
    digest = watch.digest(size)
    assert digest is not None
    watch.confirm()
    return digest


def test_a_digest_tells_new_templates_in_order_and_then_only_counts(watch: LogWatch) -> None:
    watch.take_all(["INFO begin", "INFO epoch 1 done", "WARN slow disk", "INFO epoch 2 done"])
    first = told(watch)
    assert [(t.text, t.count, t.is_new) for t in first.templates] == [
        ("INFO begin", 1, True),
        ("INFO epoch # done", 2, True),
        ("WARN slow disk", 1, True),
    ]
    assert (first.lines, first.warnings, first.errors, first.known) == (4, 1, 0, 3)
    watch.take("INFO epoch 3 done")
    second = told(watch)
    assert second.lines == 5
    assert not any(t.is_new for t in second.templates)
    assert second.counts == ((first.templates[1].key, 3),)


def test_what_was_not_received_is_told_again(watch: LogWatch) -> None:
    watch.take("ERROR the disk is gone: unit 3")
    lost = watch.digest(SIZE)
    assert lost is not None
    watch.take("INFO later")
    again = told(watch)
    assert again.error_lines == lost.error_lines == ("ERROR the disk is gone: unit 3",)
    assert [t.text for t in again.templates if t.is_new] == ["ERROR the disk is gone: unit #", "INFO later"]
    assert told(watch).error_lines == ()


def test_a_line_of_no_level_that_tells_of_a_failure_is_told_in_full(watch: LogWatch) -> None:
    watch.take_all(["Traceback (most recent call last):", "all is well"])
    assert told(watch).error_lines == ("Traceback (most recent call last):",)


def test_a_burst_of_a_known_template_is_told(watch: LogWatch, clock: ManualClock) -> None:
    for _ in range(20):
        watch.take_all(["INFO fetched chunk 7"] * 3)
        clock.advance(2.0)
        assert not any(t.burst for t in told(watch).templates)
    watch.take_all(["INFO fetched chunk 7"] * 200)
    bursting = [t for t in told(watch).templates if t.burst]
    assert [t.text for t in bursting] == ["INFO fetched chunk #"]
    assert 50 < bursting[0].burst < 80
    watch.take_all(["INFO fetched chunk 7"] * 3)
    assert not any(t.burst for t in told(watch).templates)


@pytest.mark.parametrize("size", [0, 60, 120, 300, 700, 1300])
def test_a_digest_keeps_to_its_size_whatever_the_log(watch: LogWatch, size: int) -> None:
    rng = random.Random(size)
    bare = len(encode(beat(None)))
    for _ in range(20):
        for _ in range(30):
            words = ["".join(rng.choices("aeioußĂ漢字xyz", k=rng.randint(1, 40))) for _ in range(rng.randint(1, 30))]
            watch.take(" ".join(words), rng.choice([INFO, WARNING, ERROR]))
        digest = watch.digest(size)
        if digest is not None:
            watch.confirm()
            assert len(encode(beat(digest))) - bare <= size


def beat(digest: LogDigest | None) -> Heartbeat:
    condition = Condition((), 0, None, digest)
    return Heartbeat("toy", "ann", 0, bytes(8), 0, 1000, "waiting", 0, bytes(32), (), 0, condition=condition)


def test_what_failed_is_told_before_what_is_new_only(watch: LogWatch) -> None:
    watch.take_all([f"INFO {chr(97 + n) * 30} {chr(98 + n) * 30} opened" for n in range(20)])
    watch.take("ERROR the disk is gone")
    told_first = told(watch, 400)
    assert "ERROR the disk is gone" in [t.text for t in told_first.templates]
    assert told_first.error_lines == ("ERROR the disk is gone",)


def test_who_reads_from_later_on_learns_all_templates_by_turns(watch: LogWatch) -> None:
    watch.take_all([f"INFO {chr(97 + n) * 12} {chr(65 + n) * 12} opened" for n in range(26)])
    for _ in range(10):
        told(watch)
    late = {t.text for _ in range(30) for t in told(watch).templates}
    assert len(late) == 26


def test_f40_a_flood_is_counted_and_not_looked_at_and_errors_still_are(watch: LogWatch) -> None:
    watch.take_all(["INFO flood"] * 80_000)
    watch.take("ERROR under the flood")
    digest = told(watch)
    assert digest.lines == 80_001
    assert digest.unread == 30_009, "the first line of a kind counts as ten"
    assert digest.error_lines == ("ERROR under the flood",)


def test_a_flood_that_ends_is_followed_by_ordinary_service(watch: LogWatch, clock: ManualClock) -> None:
    watch.take_all(["INFO flood"] * 80_000)
    before = told(watch).unread
    clock.advance(1.0)
    watch.take_all(["INFO well again"] * 4_000)
    assert told(watch).unread == before


def test_f40_a_template_explosion_is_told_as_one(clock: ManualClock) -> None:
    watch = LogWatch(clock=clock, max_templates=100)
    watch.take_all(["INFO " + "".join(chr(97 + int(d)) for d in str(n)) for n in range(5_000)])
    assert told(watch).is_full
    watch.take("INFO quiet")
    watch.take("INFO quiet")
    told(watch)
    assert not told(watch).is_full


@pytest.fixture
def logger(watch: LogWatch) -> logging.Logger:
    made = logging.Logger("train")  # Of its own: handlers of the root would stumble over what this one must bear.
    made.addHandler(WatchHandler(watch))
    return made


def test_a_handler_gives_level_name_message_and_exception(watch: LogWatch, logger: logging.Logger) -> None:
    logger.warning("slow: %d ms", 250)
    try:
        raise ValueError("no such tensor")
    except ValueError:
        logger.exception("training failed")
    digest = told(watch)
    assert (digest.lines, digest.warnings, digest.errors) == (3, 1, 2)
    assert digest.error_lines == ("train: training failed", "train: ValueError: no such tensor")


def test_a_message_of_many_lines_is_each_of_them_and_no_record_breaks_logging(watch: LogWatch, logger: logging.Logger) -> None:
    logger.info("one\ntwo\n" + "\n" * 1000)
    logger.info("%d of %s", "no number")

    class Hostile:
        def __str__(self) -> str:
            raise RuntimeError("no words")

    logger.info("%s", Hostile())
    logger.info(Hostile())
    texts = [t.text for t in told(watch).templates]
    assert texts == [
        "train: one",
        "train: two",
        "train:",
        "train: %d of %s",
        "train: %s",
        "train: Hostile",
    ]
