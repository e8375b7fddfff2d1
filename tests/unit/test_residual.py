"""The residual: it grows by what was left unsent once that update is in the model, and only then, whatever crashes."""

import errno
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from refold.producers.lineage import Lineage
from refold.producers.residual import Residual
from refold.producers.residual_file import Amount
from refold.schemas.canonical import decode
from refold.schemas.errors import StorageFullError
from refold.schemas.events import FederationOpened, Member, Receipt, RoundCommitted
from refold.schemas.model import ModelSchema, TensorSchema
from refold.schemas.reasons import CONTENT, INTEGRITY, PROTOCOL
from refold.schemas.updates import ClientUpdate, UpdateBody
from refold.state.largest import REST_LIMIT

GOLDEN = Path(__file__).parent / "golden"
SCHEMA = ModelSchema((TensorSchema("w", "float32", (3, 2), 20, "mean"), TensorSchema("n", "int64", (), 0, "max")))
BODY = replace(
    decode(bytes.fromhex((GOLDEN / "ClientUpdate.v1.hex").read_text()), ClientUpdate).body, schema_digest=SCHEMA.digest
)


def digest_of(number: int) -> bytes:
    return bytes([number]) * 32


def amount(*values: int) -> Amount:
    return [np.resize(np.array(values, np.int32), 6), np.zeros(0, np.int32)]


def body(base_round: int) -> UpdateBody:
    return replace(BODY, base_round=base_round)


class World:
    """A residual and the rounds that it hears of."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        opened = decode(bytes.fromhex((GOLDEN / "FederationOpened.v2.hex").read_text()), FederationOpened)
        self.lineage = Lineage(replace(opened, schema=SCHEMA))
        self.round = decode(bytes.fromhex((GOLDEN / "RoundCommitted.v2.hex").read_text()), RoundCommitted)
        self.restart()

    def restart(self) -> None:
        self.residual = Residual(self.folder, "toy", "ann")

    def values(self, base_round: int | None = None) -> list[int] | None:
        found = self.residual.read(SCHEMA, self.lineage, self.lineage.head if base_round is None else base_round)
        return None if found is None else found[0].tolist()

    def submit(self, number: int, *values: int) -> None:
        self.values()
        self.residual.put(digest_of(number), amount(*values), body(self.lineage.head))

    def commit(self, number: int | None, *, outcome: str = "applied", weight: int = 5, parent: int | None = None) -> None:
        """Commit a round with the update `number` in it."""
        round_ = self.lineage.head + 1
        members = () if number is None else (Member(digest_of(number), "ann", weight), Member(digest_of(99), "bob", 5))
        committed = replace(
            self.round,
            round=round_,
            parent=self.lineage.head if parent is None else parent,
            outcome=outcome,
            members=members,
            parameters_digest=digest_of(100 + round_),
        )
        self.lineage.rounds[round_], self.lineage.head = replace(committed, members=()), round_
        self.residual.take_round(committed)

    def tell(self, number: int, outcome: str = "accepted") -> list[bytes]:
        self.residual.take_receipt(Receipt("ann", digest_of(number), outcome))
        return self.residual.settle(self.lineage)

    def applied(self, number: int, *values: int) -> None:
        self.submit(number, *values)
        self.commit(number)
        assert self.tell(number) == [digest_of(number)]

    def files(self) -> list[str]:
        return sorted(path.suffix for path in self.folder.iterdir())


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_there_is_nothing_before_the_first_update(world: World) -> None:
    assert world.values() is None
    assert world.files() == []


def test_what_is_left_takes_effect_with_the_accepting_receipt_and_not_before(world: World) -> None:
    world.submit(1, 10, -7)
    assert world.values() is None
    world.commit(1)
    assert world.residual.settle(world.lineage) == []
    assert world.values() is None
    assert world.tell(1) == [digest_of(1)]
    assert world.values() == [10, -7] * 3
    world.applied(2, -4, 2)
    assert world.values() == [6, -5] * 3
    assert world.files() == [".residual"]


def test_an_update_that_is_accepted_and_still_waits_for_its_round_is_not_settled(world: World) -> None:
    world.submit(1, 10)
    assert world.tell(1) == []
    world.commit(None)
    assert world.residual.settle(world.lineage) == []
    world.commit(1)
    assert world.residual.settle(world.lineage) == [digest_of(1)]
    assert world.values() == [10] * 6


@pytest.mark.parametrize("outcome", [PROTOCOL, INTEGRITY, CONTENT])
def test_a_refusal_leaves_what_was_there(world: World, outcome: str) -> None:
    world.applied(1, 10, -7)
    world.submit(2, 1000)
    assert world.tell(2, outcome) == [digest_of(2)]
    assert world.values() == [10, -7] * 3
    assert world.files() == [".residual"]


@pytest.mark.parametrize(("outcome", "weight"), [("void", 5), ("applied", 0)])
def test_an_update_that_is_kept_but_not_applied_leaves_what_was_there(world: World, outcome: str, weight: int) -> None:
    world.applied(1, 10, -7)
    world.submit(2, 1000)
    world.commit(2, outcome=outcome, weight=weight)
    assert world.tell(2) == [digest_of(2)]
    assert world.values() == [10, -7] * 3


def test_an_anomaly_halves_what_was_there_once_however_often_it_is_told(world: World) -> None:
    world.applied(1, 100, -60)
    world.submit(2, 1000)
    world.tell(2, "anomaly")
    assert world.values() == [50, -30] * 3
    world.tell(2, "anomaly")
    world.residual.put(digest_of(2), amount(1), body(1))  # As if the crash came before the removal.
    world.restart()
    world.tell(2, "anomaly")
    assert world.values() == [50, -30] * 3


def test_of_two_updates_that_wait_it_does_not_matter_which_is_told_of_first(tmp_path: Path) -> None:
    found = []
    for order in ((2, 3), (3, 2)):
        folder = tmp_path / str(order[0])
        folder.mkdir()
        world = World(folder)
        world.applied(1, 100)
        world.submit(2, -30, 5)
        world.submit(3, 8)
        for number in order:
            world.commit(number)
            world.tell(number)
        found.append(world.values())
    assert found == [[78, 113] * 3] * 2


def test_a_crash_before_the_amount_is_removed_takes_it_in_once(world: World) -> None:
    world.applied(1, 10)
    world.submit(2, 5)
    world.commit(2)
    saved = {path: path.read_bytes() for path in world.folder.glob("*.unsent")}
    world.tell(2)
    for path, data in saved.items():
        path.write_bytes(data)
    world.restart()
    world.residual.take_round(replace(world.round, round=2, outcome="applied", members=(Member(digest_of(2), "ann", 5),)))
    assert world.tell(2) == [digest_of(2)]
    assert world.values() == [15] * 6
    assert world.files() == [".residual"]


def test_a_restart_hears_of_rounds_and_receipts_again_and_does_the_same(world: World) -> None:
    world.submit(1, 10)
    world.commit(1)
    world.restart()
    world.residual.take_round(replace(world.round, round=1, outcome="applied", members=(Member(digest_of(1), "ann", 5),)))
    world.tell(1)
    world.tell(1)
    assert world.values() == [10] * 6


def test_what_rests_on_a_round_that_was_rolled_back_is_forgotten(world: World) -> None:
    world.applied(1, 10)
    world.applied(2, 5)
    world.commit(None, parent=1)
    assert world.values() is None
    assert world.files() == []
    world.applied(3, 7)
    assert world.values() == [7] * 6


def test_what_rests_on_an_ancestor_of_the_round_rolled_back_to_is_kept(world: World) -> None:
    world.applied(1, 10)
    world.commit(None)
    world.commit(None, parent=1)
    world.commit(None)
    assert world.values() == [10] * 6


def test_what_rests_on_another_federations_round_is_forgotten(world: World) -> None:
    world.applied(1, 10)
    world.lineage.rounds[1] = replace(world.lineage.rounds[1], parameters_digest=bytes(32))
    assert world.values() is None


def test_two_clients_in_one_folder_have_a_residual_each(world: World) -> None:
    world.applied(1, 10)
    other = Residual(world.folder, "toy", "bob")
    assert other.read(SCHEMA, world.lineage, 1) is None
    other.put(digest_of(7), amount(1), body(0))
    world.residual.sweep((), 5)
    assert other.awaits(digest_of(7))


def test_what_was_left_out_before_noise_was_added_never_comes_after_it(world: World) -> None:
    world.applied(1, 10)
    world.submit(2, 7)
    world.residual = Residual(world.folder, "toy", "ann", private=True)
    assert world.values() is None
    world.commit(2)
    world.tell(2)
    assert world.values() is None


def test_what_a_crash_left_of_an_update_that_was_never_kept_goes_once_its_round_is_over(world: World) -> None:
    world.submit(1, 10)
    world.submit(2, 11)
    world.restart()
    world.residual.sweep({digest_of(2)}, world.lineage.head)
    assert world.residual.awaits(digest_of(1))
    world.commit(None)
    world.residual.sweep({digest_of(2)}, world.lineage.head)
    assert not world.residual.awaits(digest_of(1))
    assert world.residual.awaits(digest_of(2))


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "longer"])
def test_a_damaged_residual_begins_again_from_zero_and_takes_in_nothing_that_was_made_with_it(
    world: World, damage: str
) -> None:
    world.applied(1, 10)
    world.submit(2, -10)
    [path] = world.folder.glob("*.residual")
    data = bytearray(path.read_bytes())
    data[-40] ^= 1
    whole = path.read_bytes()
    path.write_bytes({"flip": bytes(data), "cut": whole[:-5], "empty": b"", "longer": whole + b"x"}[damage])
    assert world.values() is None
    world.commit(2)
    assert world.tell(2) == [digest_of(2)]
    assert world.values() is None
    world.applied(3, 4)
    assert world.values() == [4] * 6


def test_a_damaged_amount_makes_the_residual_begin_again(world: World) -> None:
    world.applied(1, 10)
    world.submit(2, -10)
    [path] = world.folder.glob("*.unsent")
    path.write_bytes(path.read_bytes()[:-1])
    world.commit(2)
    assert world.tell(2) == [digest_of(2)]
    assert world.values() is None


def test_the_residual_stays_within_what_an_update_may_ask_for(world: World) -> None:
    for number in (1, 2, 3):
        world.applied(number, REST_LIMIT, -REST_LIMIT)
    assert world.values() == [REST_LIMIT, -REST_LIMIT] * 3


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_f24_a_full_disk_leaves_all_as_it_was_and_the_fate_is_acted_on_later(
    world: World, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    world.applied(1, 10)
    world.submit(2, 5)
    world.commit(2)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os if failing == "fsync" else Path, failing, full)
    with pytest.raises(StorageFullError, match="No space left"):
        world.tell(2)
    monkeypatch.undo()
    assert world.values() == [10] * 6
    assert world.residual.settle(world.lineage) == [digest_of(2)]
    assert world.values() == [15] * 6
