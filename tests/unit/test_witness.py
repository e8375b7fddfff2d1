"""A client as a witness: what it keeps, and every way in which a log that became another one is noticed."""

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from refold.bus.clock import ManualClock
from refold.bus.ledger import Entry, read_all
from refold.federation import Federation
from refold.producers.client import Client
from refold.producers.outbox import Outbox
from refold.producers.witness import MOST_HELD, NEWEST_HELD, SAVE_EVERY_S, Witness, thinned
from refold.schemas.checkpoints import Checkpoint, sign_checkpoint
from refold.schemas.errors import ConfigurationError, IntegrityError, InvalidRecord
from refold.schemas.events import Checkpointed
from refold.schemas.kept import Kept, from_lines, read_kept, to_lines
from refold.schemas.keys import SigningKey, log_key
from refold.testing import eventually

KEY = SigningKey.generate()


@pytest.fixture
def rounds(federation: Federation) -> list[Entry]:
    return read_all(federation.bus, federation.topics.rounds)


@pytest.fixture
def key(federation: Federation) -> SigningKey:
    return log_key(federation.keyring.secret())


@pytest.fixture
def box(tmp_path: Path) -> Path:
    (tmp_path / "box").mkdir()
    return tmp_path / "box"


def witness(box: Path, rounds: list[Entry] | tuple[Entry, ...] = (), **said: Any) -> Witness:
    made = Witness(box, "fed", "c0", **said)
    for entry in rounds:
        made.take(entry)
    return made


def changed(entry: Entry, key: SigningKey | None = None, **changes: Any) -> Entry:
    """Return a commit of `rounds` whose checkpoint says something else, signed anew if a key is given."""
    event: Checkpointed = entry.events[-1]
    said = replace(event.signed.checkpoint, **changes)
    signed = sign_checkpoint(said, key) if key else replace(event.signed, checkpoint=said)
    return replace(entry, events=(*entry.events[:-1], replace(event, signed=signed)))


def without_proof(entry: Entry, **changes: Any) -> Entry:
    return replace(entry, events=(*entry.events[:-1], replace(entry.events[-1], **changes)))


def evidence(box: Path) -> list[Kept]:
    return [kept for path in box.glob("*.forked") for kept in read_kept(path)]


def test_a_witness_holds_every_checkpoint_that_it_saw_and_finds_them_again(box: Path, rounds: list[Entry]) -> None:
    first = witness(box, rounds)
    first.close()
    held = read_kept(first.path)
    assert [kept.signed for kept in held] == [entry.events[-1].signed for entry in rounds]
    again = witness(box, rounds)
    assert not again.is_behind
    assert again.newest == held[-1]
    again.require_whole()
    assert evidence(box) == []


def test_a_witness_goes_on_from_its_file(box: Path, rounds: list[Entry]) -> None:
    witness(box, rounds[:3]).close()
    again = witness(box, rounds)
    again.close()
    assert [kept.signed for kept in read_kept(again.path)] == [entry.events[-1].signed for entry in rounds]


FORGERIES = {
    "no checkpoint": lambda entry, key: replace(entry, events=entry.events[:-1]),
    "two checkpoints": lambda entry, key: replace(entry, events=(*entry.events, entry.events[-1])),
    "another key": lambda entry, key: changed(entry, SigningKey.generate()),
    "a changed root": lambda entry, key: changed(entry, root=bytes(32)),
    "a changed time": lambda entry, key: changed(entry, time_ms=1),
    "another root, signed": lambda entry, key: changed(entry, key, root=bytes(32)),
    "another head, signed": lambda entry, key: changed(entry, key, head=bytes(32)),
    "other rounds, signed": lambda entry, key: changed(entry, key, rounds_head=bytes(32)),
    "another federation, signed": lambda entry, key: changed(entry, key, federation="other"),
    "fewer events, signed": lambda entry, key: changed(entry, key, events=1),
    "no proof": lambda entry, key: without_proof(entry, consistency=()),
    "another predecessor": lambda entry, key: without_proof(entry, previous_events=1),
}


@pytest.mark.parametrize("how", FORGERIES)
def test_a_new_checkpoint_that_does_not_hold_ends_the_client(box: Path, rounds: list[Entry], key: SigningKey, how: str) -> None:
    seen = witness(box, rounds[:-1])
    with pytest.raises(IntegrityError, match="the log was forked"):
        seen.take(FORGERIES[how](rounds[-1], key))
    with pytest.raises(IntegrityError, match="the log was forked"):
        seen.take(rounds[-1])  # For good: not even the right one is taken afterwards.
    assert rounds[-2].events[-1].signed in [kept.signed for kept in evidence(box)]


def test_two_contradicting_checkpoints_of_one_server_stay_as_evidence(box: Path, rounds: list[Entry], key: SigningKey) -> None:
    witness(box, rounds).close()
    forged = changed(rounds[-1], key, root=bytes(32))
    with pytest.raises(IntegrityError, match="another checkpoint where this client knows one") as raised:
        witness(box, [*rounds[:-1], forged])
    one, other = evidence(box)
    assert one.checkpoint.events == other.checkpoint.events
    assert not one.checkpoint.agrees(other.checkpoint)
    assert one.log_key == other.log_key == key.public
    assert f"first {rounds[-2].events[-1].signed.checkpoint.events} events are as they were" in str(raised.value)


def test_a_log_that_was_cut_off_is_noticed_at_the_next_start(box: Path, rounds: list[Entry]) -> None:
    witness(box, rounds).close()
    again = witness(box, rounds[:-1])
    assert again.is_behind
    with pytest.raises(IntegrityError, match="ends before what this client saw"):
        again.require_whole()


def test_a_log_that_went_on_otherwise_is_noticed(box: Path, rounds: list[Entry], key: SigningKey) -> None:
    witness(box, rounds[:-1]).close()
    with pytest.raises(IntegrityError, match="another checkpoint"):
        witness(box, [*rounds[:-2], rounds[-1]])


def test_a_log_that_names_no_keys_any_more_is_noticed(box: Path, rounds: list[Entry]) -> None:
    witness(box, rounds).close()
    opened = replace(rounds[0].events[0], log_keys=())
    with pytest.raises(IntegrityError, match="carries 0 checkpoints"):
        witness(box, [replace(rounds[0], events=(opened,))])


def test_a_federation_from_before_there_were_log_keys_is_taken_as_it_is(box: Path, rounds: list[Entry]) -> None:
    opened = replace(rounds[0].events[0], log_keys=())
    seen = witness(box, [replace(rounds[0], events=(opened,))])
    assert seen.newest is None
    seen.close()
    assert list(box.iterdir()) == []


def test_what_is_held_is_written_at_most_once_a_second_and_at_the_end(box: Path, rounds: list[Entry]) -> None:
    clock = ManualClock()
    seen = witness(box, rounds[:2], clock=clock)
    assert not seen.path.exists()
    clock.advance(SAVE_EVERY_S)
    seen.take(rounds[2])
    assert len(read_kept(seen.path)) == 3
    seen.take(rounds[3])
    assert len(read_kept(seen.path)) == 3
    seen.close()
    assert len(read_kept(seen.path)) == 4


def test_an_older_life_that_ends_late_does_not_take_back_what_a_newer_one_saw(box: Path, rounds: list[Entry]) -> None:
    older = witness(box, rounds[:2])
    witness(box, rounds).close()
    older.close()
    assert len(read_kept(older.path)) == len(rounds)


def test_a_file_that_is_not_whole_is_kept_aside(box: Path, rounds: list[Entry]) -> None:
    seen = witness(box, rounds)
    seen.close()
    seen.path.write_bytes(seen.path.read_bytes()[:-40])
    assert witness(box).newest is None
    assert seen.path.with_suffix(".broken").exists()


def test_without_room_the_older_file_stays(box: Path, rounds: list[Entry], monkeypatch: pytest.MonkeyPatch) -> None:
    witness(box, rounds[:2]).close()
    later = witness(box, rounds)

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        later.save()
    assert len(read_kept(later.path)) == 2
    later.close()
    assert len(read_kept(later.path)) == len(rounds)


def line_of(held: int) -> Iterator[Kept]:
    """Yield so many checkpoints of a growing log, unsigned: only their sizes matter here."""
    for number in range(held):
        said = Checkpoint("fed", 1 + 3 * number, bytes(32), bytes(32), number, bytes(32), 0)
        yield Kept(sign_checkpoint(said, KEY), KEY.public)


def test_what_is_held_is_bounded_and_spaced_by_age() -> None:
    held: list[Kept] = []
    for kept in line_of(3000):
        held = thinned([*held, kept])
    events = [kept.events for kept in held]
    assert len(held) == MOST_HELD
    assert events[0] == 1
    assert events[-NEWEST_HELD:] == [1 + 3 * number for number in range(3000 - NEWEST_HELD, 3000)]
    # How exactly a first bad event can be named: within a sixth of its distance from the end.
    end = events[-1]
    assert max((later - one) / (end - one) for one, later in pairwise(events[1 : 1 - NEWEST_HELD])) < 1 / 6


def test_a_changed_line_is_refused_and_names_the_line(rounds: list[Entry], key: SigningKey) -> None:
    kept = [Kept(entry.events[-1].signed, key.public) for entry in rounds]
    assert from_lines(to_lines(kept) + "\n") == kept
    for name, value in kept[1].to_json().items():
        other = value + 1 if isinstance(value, int) else value[:-1] + ("0" if value[-1] != "0" else "1")
        line = json.dumps({**kept[1].to_json(), name: other})
        with pytest.raises(InvalidRecord, match="line 2: the signature of the checkpoint"):
            from_lines(to_lines(kept[:1]) + line)


@pytest.mark.parametrize("text", ["{}", "[]", "7", "{", '"text"', "null", '{"federation": "x"}', "\x00", "[" * 100_000])
def test_a_file_of_something_else_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "file").write_text(text)
    with pytest.raises(ConfigurationError, match="no signed checkpoints"):
        read_kept(tmp_path / "file")


def test_a_real_client_refuses_a_log_that_was_cut_off(federation: Federation, folder: Path, rounds: list[Entry]) -> None:
    box = Outbox(folder / "c0.outbox")
    name = "c0"
    key = SigningKey.load(folder / "c0.pem")
    with Client(federation.bus, federation.topics, name, key, box) as client:
        assert client.witness.newest is not None
        assert client.witness.newest.signed == rounds[-1].events[-1].signed
        path = client.witness.path
    eventually(path.exists)
    held = read_kept(path)
    beyond = replace(held[-1].checkpoint, events=held[-1].events + 5, rounds_index=held[-1].checkpoint.rounds_index + 2)
    signed = sign_checkpoint(beyond, log_key(federation.keyring.secret()))
    path.write_text(to_lines([*held, Kept(signed, held[-1].log_key)]))
    with (
        pytest.raises(IntegrityError, match="ends before what this client saw"),
        Client(federation.bus, federation.topics, name, key, box, open_timeout_s=0.3),
    ):
        pass
