"""The fuzzer in small: what was found once is tried again, every decoder gets new inputs, and the fuzzer itself can fail."""

from __future__ import annotations

import gc

import pytest

from refold.schemas import canonical
from refold.schemas.errors import InvalidRecord
from tests.fuzz import corpus
from tests.fuzz.decoder import TAKEN, Decoder, Input
from tests.fuzz.engine import BATCH, REACHED_BY, draw, fuzz, minimised
from tests.fuzz.records import PREFIX
from tests.fuzz.table import decoders

INPUTS = 150
"""New inputs for each decoder: all of them together take some ten seconds."""

TABLE = decoders()
KEPT = [(name, stem, value) for name in TABLE for stem, value in corpus.load(name)]


@pytest.mark.parametrize(("name", "value"), [pytest.param(n, value, id=f"{n}/{stem}") for n, stem, value in KEPT])
def test_f30_an_input_that_was_kept_is_taken_or_refused_by_name(name: str, value: Input) -> None:
    TABLE[name].outcome(value)


@pytest.mark.parametrize("name", TABLE)
def test_f30_new_inputs_are_taken_or_refused_by_name_in_bounded_time_and_memory(name: str, seed: int) -> None:
    decoder = TABLE[name]
    report = fuzz(decoder, max(1, INPUTS // decoder.cost), seed)
    gc.collect()
    assert [found.what for found in report.defects] == []
    assert report.inputs > 0


def test_every_registered_record_is_in_the_table() -> None:
    kinds = {kind.__name__ for kind in canonical._by_type if kind.__module__.startswith("refold.")}
    assert {name.removeprefix(PREFIX) for name in TABLE if name.startswith(PREFIX)} == kinds


def test_every_decoder_that_something_was_kept_of_is_in_the_table() -> None:
    assert {path.name for path in corpus.FOLDER.iterdir()} <= TABLE.keys()


def test_a_seed_gives_the_same_inputs_again_and_another_one_others() -> None:
    decoder = TABLE["chunks-planes"]
    seeds = decoder.seeds()
    first = draw(decoder, seeds, 7, 3)
    assert len(first) == BATCH
    assert draw(decoder, seeds, 7, 3) == first
    assert draw(decoder, seeds, 8, 3) != first


def planted(value: Input) -> str:
    if b"\xff" in value[0]:
        raise KeyError("the planted defect")
    if value[0] != b"seed":
        raise InvalidRecord("form", "something else")
    return TAKEN


def test_a_defect_is_found_and_cut_down_to_what_it_needs() -> None:
    decoder = Decoder("planted", lambda: [(b"seed",)], planted)
    report = fuzz(decoder, 5_000, 1)
    assert report.defects
    assert all(found.what.startswith("KeyError") for found in report.defects)
    cut = minimised(decoder, (b"some\xffthing", b"beside"), "KeyError in the judge: 'the planted defect'")
    assert cut == (b"\xff",)


def test_a_reason_that_nobody_knows_is_a_defect() -> None:
    def unknown(_value: Input) -> str:
        raise InvalidRecord("bad-vibes", "no such code")

    report = fuzz(Decoder("planted", lambda: [(b"seed",)], unknown), 1, 1)
    assert "bad-vibes" in report.defects[0].what


def test_a_fuzzer_that_never_gets_past_the_first_check_says_so() -> None:
    def never(_value: Input) -> str:
        raise InvalidRecord("form", "whatever it is")

    report = fuzz(Decoder("planted", lambda: [(b"seed",)], never), REACHED_BY, 1)
    assert report.lacking == {TAKEN}
    assert not report.is_sound
