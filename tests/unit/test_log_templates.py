"""Templates: what lines have in common, within bounds."""

from __future__ import annotations

import random

import pytest

from refold.producers.logs.parsing import level_of, split_stamp, tells_of_failure
from refold.producers.logs.templates import TemplateMiner
from refold.schemas.condition import CRITICAL, ERROR, INFO, UNKNOWN, WARNING


def test_lines_that_differ_in_numbers_are_one_template() -> None:
    miner = TemplateMiner()
    made = [miner.learn(f"epoch {n} batch {n * 3}: loss {n / 7:.4f} at 0x{n:08x}", INFO) for n in range(50)]
    assert len({template.key for template, _ in made}) == 1
    assert [is_new for _, is_new in made] == [True] + [False] * 49
    assert made[0][0].text == "epoch # batch #: loss # at #"
    assert made[0][0].count == 50


def test_words_in_which_lines_differ_are_left_open_and_the_key_stays() -> None:
    miner = TemplateMiner()
    first, _ = miner.learn("connection to broker alpha is open now", INFO)
    key = first.key
    second, is_new = miner.learn("connection to broker beta is open now", INFO)
    assert (second.text, second.key, is_new) == ("connection to broker <*> is open now", key, False)


def test_a_failure_does_not_hide_in_an_ordinary_template_of_its_length() -> None:
    miner = TemplateMiner()
    for name in ("alpha", "beta", "gamma", "delta"):
        miner.learn(f"worker {name} finished its shard in time", INFO)
    assert miner.learn("worker alpha lost its disk for good", INFO)[1]
    assert miner.learn("worker alpha finished its shard in time", ERROR)[1], "of another level"


def test_a_list_is_the_same_kind_of_line_however_long() -> None:
    miner = TemplateMiner()
    for count in range(2, 30):
        miner.learn("removed " + ", ".join(f"ward-{n}.steps-{n}" for n in range(count)) + " from the fetcher", INFO)
    assert len(miner.templates) == 1


def test_secrets_are_no_words_of_a_template() -> None:
    miner = TemplateMiner()
    for secret in ("swordfish", "hunter", "opensesame"):
        miner.learn(f"password={secret} was taken", INFO)
    assert [template.text for template in miner.templates.values()] == ["password=<secret> was taken"]


def test_f40_a_template_explosion_keeps_to_its_memory_and_forgets_only_itself() -> None:
    miner, rng = TemplateMiner(max_templates=200), random.Random(7)
    for _ in range(30):
        miner.learn("the node is well and trains on", INFO)
    for _ in range(4_000):
        miner.learn(" ".join(rng.choices(WORDS, k=rng.randint(1, 60))), INFO)
    assert len(miner.templates) <= 200
    assert sum(map(len, miner._leaves.values())) == len(miner.templates)
    assert sum(map(len, miner._firsts.values())) <= 64 * 41
    assert sum(map(len, miner._lasts.values())) <= 5 * len(miner.templates)
    assert miner.evicted > 2_000
    assert not miner.learn("the node is well and trains on", INFO)[1]


def test_f40_a_line_without_end_and_words_without_end_are_cut() -> None:
    miner = TemplateMiner()
    template, _ = miner.learn("x" * 10_000 + " " + "y " * 10_000, INFO)
    assert len(template.words) <= 40
    assert max(map(len, template.words)) <= 60
    assert len(template.text) <= 200


@pytest.mark.parametrize(
    ("line", "level", "text"),
    [
        ("2026-11-26T17:26:01,125 INFO [Broker id=1] up (logger)", INFO, "INFO [Broker id=1] up (logger)"),
        ("[2026-11-26 17:26:01.125+00:00] ERROR x", ERROR, "ERROR x"),
        ("Nov 26 17:26:01 host kernel: oom", UNKNOWN, "host kernel: oom"),
        ("17:26:01 warning: low disk", WARNING, "warning: low disk"),
        ("1700000000.25 [fatal] gone", CRITICAL, "[fatal] gone"),
        ("no errors so far", UNKNOWN, "no errors so far"),
        ("level=error msg=x", ERROR, "level=error msg=x"),
    ],
)
def test_stamp_and_level_are_read_from_usual_heads(line: str, level: int, text: str) -> None:
    assert (level_of(line), split_stamp(line)) == (level, text)


@pytest.mark.parametrize("line", ["Killed", "RuntimeError: CUDA out of memory", "loss is nan", "No space left on device"])
def test_words_of_failure_are_known(line: str) -> None:
    assert tells_of_failure(line)


@pytest.mark.parametrize("line", ["epoch 3 done", "Terror in the title", "nantes: information", "Deleted log (LogSegment)"])
def test_words_of_failure_are_whole_words(line: str) -> None:
    assert not tells_of_failure(line)


WORDS = [f"{first}{second}{third}" for first in "bdfgklm" for second in "aeiou" for third in "nrstxz"]
