"""What heartbeats give away of the states that nodes hold: others than the log's, trainings that changed, lies."""

from __future__ import annotations

import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from refold.bus.clock import ManualClock, SystemClock
from refold.bus.contract import Record
from refold.consumers import locating
from refold.consumers.astray import Astray, Servers
from refold.consumers.hearing import Hearing
from refold.consumers.liveness import Liveness
from refold.consumers.locating import Locator
from refold.consumers.trees import MOST_LOOKED_AT, TreeReader
from refold.schemas.canonical import encode
from refold.schemas.digests import DigestTree, parameters_nodes, state_digest
from refold.schemas.errors import IntegrityError
from refold.schemas.held import StateHeld, TrainingHeld
from refold.schemas.keys import STATE_TREE_TAG, SigningKey
from refold.schemas.model import ModelSchema, TensorSchema
from refold.schemas.state_tree import BLOCKS, TENSORS, StateTree, differing, named, root_of, told_digests
from refold.schemas.updates import Heartbeat, ServerHeartbeat
from refold.testing import eventually
from tests.unit.test_hearing import KEY, OTHER, beat, roster, signed

GOOD, BAD, WORSE = bytes([1]) * 32, bytes([2]) * 32, bytes([3]) * 32
SCHEMA = ModelSchema(
    (
        TensorSchema("conv.weight", "float32", (300, 1000), 22, "mean"),
        TensorSchema("steps", "int64", (3,), 0, "max"),
        TensorSchema("bias", "float32", (7,), 22, "mean"),
    )
)


def known(round_: int) -> bytes | None:
    return GOOD if round_ < 100 else None


def schema_of(round_: int) -> ModelSchema:
    assert round_ == 5
    return SCHEMA


def told(round_: int, digest: bytes, number: int = 0, training: TrainingHeld | None = None) -> Heartbeat:
    return beat(number, round=round_, parameters_digest=digest, training=training)


def arrays() -> list[Any]:
    return [np.arange(300_000, dtype=np.int32), np.arange(3, dtype=np.int64), np.arange(7, dtype=np.int32)]


def tree(flipped: tuple[int, ...] = ()) -> DigestTree:
    held = arrays()
    for place in flipped:
        held[0][place] ^= 1 << 20
    return DigestTree(parameters_nodes(SCHEMA, held))


def state_tree(held: DigestTree, key: SigningKey = KEY, **changes: Any) -> StateTree:
    depth, leaves = told_digests(held)
    made = StateTree("toy", "ann", 3, b"b" * 8, 0, 5, held.parameters_digest, depth, leaves, KEY.key_id)
    made = replace(made, **changes)
    return replace(made, signature=key.sign(STATE_TREE_TAG, made.signed_digest))


def test_another_state_is_told_once_and_another_round_anew() -> None:
    astray = Astray()
    assert astray.take(told(5, GOOD), known) == []
    assert [found.what for found in astray.take(told(5, BAD, 1), known)] == [
        "ann holds another state of round 5 than the log's"
    ]
    assert astray.take(told(5, BAD, 2), known) == []
    assert "ann" in astray
    assert len(astray.take(told(6, BAD, 3), known)) == 1
    assert astray.take(told(6, GOOD, 4), known) == []
    assert "ann" not in astray


def test_a_round_that_the_log_lacks_and_an_untold_digest_say_nothing() -> None:
    astray = Astray()
    assert astray.take(told(100, BAD), known) == []
    assert astray.take(told(5, bytes(32)), known) == []
    assert "ann" not in astray


def test_three_rounds_in_a_row_are_unsound_and_three_apart_are_not() -> None:
    in_a_row, apart = Astray(), Astray()
    for round_ in (5, 6, 7):
        found = [*in_a_row.take(told(round_, BAD), known), *in_a_row.take(told(round_, GOOD), known)]
        spread = [*apart.take(told(round_, BAD), known), *apart.take(told(round_, GOOD), known)]
        assert apart.take(told(round_, GOOD), known) == []
    assert [one.severity for one in found] == ["warning", "error"]
    assert "rounds 5, 6, 7" in found[1].what
    assert [one.severity for one in spread] == ["warning"]


def test_a_training_that_tells_two_digests_at_one_step_is_found_and_one_begun_anew_is_not() -> None:
    first = TrainingHeld(bytes(8), 6, 40, GOOD)
    astray = Astray()
    for training in (first, replace(first, step=50), first, replace(first, life=b"another!", digest=BAD)):
        assert astray.take(told(5, GOOD, training=training), known) == []
    lost = replace(first, life=b"another!", digest=WORSE)
    assert astray.news(told(5, GOOD, training=lost), known) == "training"
    (found,) = astray.take(told(5, GOOD, training=lost), known)
    assert "at step 40" in found.what
    assert astray.take(told(5, GOOD, training=lost), known) == []


def test_a_servers_parameters_and_its_optimizer_are_told_apart() -> None:
    servers = Servers()

    def heard(parameters: bytes, slots: bytes) -> list[str]:
        holds = (StateHeld("aggregation", 5, parameters, slots),)
        made = ServerHeartbeat("toy", "host", bytes(8), 0, 1000, (), 0, bytes(8), b"", None, holds)
        states = {5: state_digest(GOOD, WORSE)}
        return [found.what for found in servers.take(made, known, states.get)]

    assert heard(GOOD, WORSE) == []
    assert heard(GOOD, BAD) == ["host holds, for aggregation, other optimizer state of round 5 than the log's"]
    assert heard(GOOD, BAD) == [], "told once"
    assert (
        Servers()
        .take(
            ServerHeartbeat("toy", "host", bytes(8), 0, 1, (), 0, bytes(8), b"", None, (StateHeld("a", 9, BAD, BAD),)),
            known,
            {9: GOOD}.get,
        )[0]
        .what.startswith("host holds, for a, other parameters of round 9")
    )


@pytest.mark.parametrize("honest", [True, False])
def test_two_signed_beats_of_one_number_with_two_states_are_a_lie_and_a_forged_one_is_not(honest: bool) -> None:
    for together in (True, False):
        hearing, to = Hearing(Liveness()), roster()
        one = signed(told(5, GOOD, 7))
        other = signed(told(5, BAD, 7), OTHER if honest else KEY)
        for number, beats in enumerate([[one, other]] if together else [[one], [other]]):
            hearing.take(to, beats, 100.0 + number / 10, known)
        assert hearing.lying == (set() if honest else {"ann"}), together
        assert [found.kind for found in hearing.strayed] == ([] if honest else ["lying"])


def test_the_same_beat_twice_is_no_lie() -> None:
    hearing, one = Hearing(Liveness()), signed(told(5, GOOD, 7))
    hearing.take(roster(), [one, one], 100.0, known)
    assert not hearing.lying


def test_forged_news_cannot_keep_an_honest_clients_return_from_being_heard() -> None:
    hearing, to = Hearing(Liveness()), roster()
    hearing.take(to, [signed(told(5, BAD, 1))], 100.0, known)
    for number in range(20):
        hearing.take(to, [signed(told(6, WORSE, 50 + number), OTHER)], 100.0 + number / 20, known)
    hearing.take(to, [signed(told(5, GOOD, 2))], 101.01, known)
    assert "ann" not in hearing.astray


def test_a_tree_names_tensors_blocks_and_elements() -> None:
    wrong = state_tree(tree((140_000, 280_000)))
    assert root_of(wrong, SCHEMA) == wrong.parameters_digest
    places = differing(wrong, SCHEMA, tree())
    assert named(SCHEMA, places) == "conv.weight, blocks 1 to 2 of 3 (elements 131072 to 299999)"
    assert named(SCHEMA, [("m/conv.weight", 0)]) == "m/conv.weight, block 0 of 3 (elements 0 to 131071)"


def test_a_tree_of_tensors_names_tensors() -> None:
    truth, wrong = tree(), tree((3,))
    only = state_tree(wrong, depth=TENSORS, digests=tuple(node.digest for node in wrong.parameters))
    assert root_of(only, SCHEMA) == wrong.parameters_digest
    assert named(SCHEMA, differing(only, SCHEMA, truth)) == "conv.weight"


def test_more_places_than_a_person_reads_are_counted() -> None:
    assert named(SCHEMA, [(f"t{number}", None) for number in range(11)]).endswith("t7 and 3 more places")


def astray_of(digest: bytes) -> Astray:
    astray = Astray()
    astray.take(told(5, digest), known)
    return astray


def record(made: StateTree, key: bytes = b"ann") -> Record:
    headers = (("ce_type", b"refold.StateTree"),)
    return Record("toy.health", 0, 0, 0, key, encode(made), headers)


HOSTILE = {
    "too few digests": (lambda t: {"digests": t.digests[:-1]}, "which is not the model's number"),
    "none": (lambda t: {"digests": ()}, "which is not the model's number"),
    "an unknown depth": (lambda t: {"depth": "leaves"}, "which is not the model's number"),
    "tensors said to be blocks": (lambda t: {"depth": TENSORS}, "which is not the model's number"),
    "digests made up": (lambda t: {"digests": (GOOD, *t.digests[1:])}, "is not of the digest that it told"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_signed_tree_that_cannot_be_true_is_told_of(case: str) -> None:
    wrong, to = tree((3,)), roster()
    change, why = HOSTILE[case]
    made = state_tree(wrong)
    bad = state_tree(wrong, **change(made))
    ((_, fault),) = TreeReader().take([record(bad)], to, astray_of(wrong.parameters_digest), schema_of)
    assert why in fault


def test_trees_are_believed_once_and_only_of_what_their_client_told() -> None:
    wrong, to, reader = tree((3,)), roster(), TreeReader()
    made, astray = state_tree(wrong), astray_of(wrong.parameters_digest)
    unasked = [record(made, b"bob"), record(state_tree(wrong, round=4)), record(state_tree(wrong, OTHER))]
    assert list(reader.take(unasked, to, astray, schema_of)) == []
    assert reader.ignored == {"unasked": 2, "forged": 1}
    assert list(reader.take([record(made)] * 3, to, astray, schema_of)) == [(made, "")]
    assert reader.ignored["flood"] == 2
    assert list(reader.take([record(made)], to, Astray(), schema_of)) == []


def test_a_flood_of_forged_trees_costs_few_looks() -> None:
    wrong, to, reader = tree((3,)), roster(), TreeReader()
    forged = [record(state_tree(wrong, OTHER))] * 100
    assert list(reader.take(forged, to, astray_of(wrong.parameters_digest), schema_of)) == []
    assert reader.ignored == {"forged": MOST_LOOKED_AT, "flood": 100 - MOST_LOOKED_AT}


def test_a_model_of_many_blocks_is_told_of_by_its_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    assert told_digests(tree())[0] == BLOCKS
    monkeypatch.setattr("refold.schemas.state_tree.MOST_DIGESTS", 4)
    assert told_digests(tree()) == (TENSORS, tuple(node.digest for node in tree().parameters))


@pytest.mark.parametrize("error", [IntegrityError("no step"), MemoryError(), ValueError("a surprise")])
def test_whatever_one_tree_brings_about_the_next_is_compared(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    truth, wrong = tree(), tree((3,))
    broken, closed = [error], []

    def rebuild(round_: int, *, slots: bool) -> Any:
        if broken:
            raise broken.pop()
        return SimpleNamespace(tree=lambda slots: truth)

    def history(*args: object, **said: object) -> Any:
        lineage = SimpleNamespace(schema_of=schema_of)
        return SimpleNamespace(lineage=lineage, refresh=lambda: None, rebuild=rebuild, close=lambda: closed.append(True))

    monkeypatch.setattr(locating, "History", history)
    genesis: Any = None
    locator = Locator(genesis, genesis, genesis, SystemClock())
    locator.ask(state_tree(wrong))
    eventually(lambda: "cannot be said" in caplog.text, timeout_s=10.0, what="a word of the first")
    locator.ask(state_tree(wrong))
    found: list[Any] = []
    eventually(lambda: found.extend(locator.found()) or found, timeout_s=10.0, what="the second")
    locator.close()
    assert found[0][1].startswith("conv.weight, block 0")
    assert closed


def test_a_rebuild_that_fails_is_rested_from_like_one_that_succeeds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, begun = ManualClock(), []

    def rebuild(round_: int, *, slots: bool) -> Any:
        begun.append(time.monotonic())
        clock.advance(0.05)
        raise IntegrityError("no way leads there")

    lineage = SimpleNamespace(schema_of=schema_of)
    history = SimpleNamespace(lineage=lineage, refresh=lambda: None, rebuild=rebuild, close=lambda: None)
    monkeypatch.setattr(locating, "History", lambda *args, **said: history)
    genesis: Any = None
    locator = Locator(genesis, genesis, genesis, clock)
    for count in (1, 2):
        locator.ask(state_tree(tree((3,))))
        eventually(lambda: len(begun) == count, timeout_s=10.0, what="a rebuild")  # noqa: B023 -- called at once
    locator.close()
    assert begun[1] - begun[0] >= 0.9 * locating.REST * 0.05
