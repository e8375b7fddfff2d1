"""The outbox: what is kept is sent as the same bytes, whatever crashed, and nothing broken is ever sent."""

import errno
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import blake3
import numpy as np
import pytest
from stepped import KEYS, make

from refold.bus import Place
from refold.bus.memory import MemoryBus
from refold.producers.outbox import MAGIC, Outbox, Parcel
from refold.producers.place import ClientPlace
from refold.producers.residual_file import Basis, write_amount
from refold.schemas.errors import PlaceTakenError, StorageFullError


def parcel(number: int = 0, size: int = 100) -> Parcel:
    return Parcel(bytes([number]) * 32, b"manifest %d" % number, (bytes([number]) * size, b"", b"last"))


def test_what_is_kept_comes_back_as_the_same_bytes_oldest_first(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "box")
    for number in (3, 1, 2):
        outbox.put(parcel(number))
        path = tmp_path / "box" / f"{parcel(number).digest.hex()}.update"
        os.utime(path, ns=(number * 10**9, (10 - number) * 10**9))
    assert list(Outbox(tmp_path / "box").waiting()) == [parcel(3), parcel(2), parcel(1)]
    assert outbox.digests() == {parcel(number).digest for number in (1, 2, 3)}


def test_what_is_dropped_is_gone_and_dropping_it_again_does_nothing(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    outbox.put(parcel())
    outbox.drop(parcel().digest)
    outbox.drop(parcel().digest)
    assert list(outbox.waiting()) == []


def test_keeping_the_same_update_twice_keeps_it_once_and_needs_no_more_room(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, max_bytes=300)
    outbox.put(parcel())
    outbox.put(parcel())
    assert list(outbox.waiting()) == [parcel()]


def test_what_a_crash_left_half_written_is_removed(tmp_path: Path) -> None:
    (tmp_path / f"{bytes(32).hex()}.tmp").write_bytes(b"half")
    outbox = Outbox(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert list(outbox.waiting()) == []


def test_what_another_process_is_writing_is_no_leftover(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outbox, sync = Outbox(tmp_path), os.fsync

    def meanwhile(descriptor: int) -> None:
        Outbox(tmp_path)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", meanwhile)
    outbox.put(parcel())
    path = tmp_path / f"{bytes(32).hex()}.residual"
    write_amount(path, Basis(bytes(16), bytes(32), bytes(32), 1, bytes(32), bytes(32)), [np.ones(3, np.int32)])
    assert list(outbox.waiting()) == [parcel()]
    assert path.exists()


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "foreign", "longer"])
def test_f26_a_file_that_is_not_whole_is_put_aside_and_never_sent(tmp_path: Path, damage: str) -> None:
    outbox = Outbox(tmp_path)
    outbox.put(parcel(1))
    outbox.put(parcel(2))
    path = tmp_path / f"{parcel(1).digest.hex()}.update"
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
    broken = {"flip": bytes(data), "cut": bytes(data[:-7]), "empty": b"", "foreign": b"hello", "longer": bytes(data) + b"x"}
    path.write_bytes(broken[damage])
    assert list(outbox.waiting()) == [parcel(2)]
    assert path.with_suffix(".broken").read_bytes() == broken[damage]
    assert list(outbox.waiting()) == [parcel(2)]


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    outbox.put(parcel(1, size=3))
    path = tmp_path / f"{parcel(1).digest.hex()}.update"
    whole = path.read_bytes()
    for place in range(len(whole) * 8):
        data = bytearray(whole)
        data[place // 8] ^= 1 << place % 8
        path.write_bytes(bytes(data))
        assert list(outbox.waiting()) == []
        path.with_suffix(".broken").unlink()


def test_a_file_of_another_name_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.update").write_bytes(b"mine")
    outbox = Outbox(tmp_path)
    outbox.put(parcel(1))
    assert list(outbox.waiting()) == [parcel(1)]
    assert outbox.digests() == {parcel(1).digest}
    assert (tmp_path / "notes.update").read_bytes() == b"mine"


def test_a_full_outbox_refuses_and_keeps_what_it_has(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, max_bytes=1000)
    outbox.put(parcel(1, size=600))
    with pytest.raises(StorageFullError, match="may hold 1,000"):
        outbox.put(parcel(2, size=600))
    assert list(outbox.waiting()) == [parcel(1, size=600)]
    outbox.drop(parcel(1).digest)
    outbox.put(parcel(2, size=600))


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_f24_a_disk_that_is_full_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    outbox = Outbox(tmp_path)

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os if failing == "fsync" else Path, failing, full)
    with pytest.raises(StorageFullError, match="No space left"):
        outbox.put(parcel())
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []
    outbox.put(parcel())
    assert list(outbox.waiting()) == [parcel()]


def test_a_file_that_another_process_sent_meanwhile_is_not_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outbox, other = Outbox(tmp_path), Outbox(tmp_path)
    for number in range(3):
        outbox.put(parcel(number))
    real = Path.read_bytes

    def read(path: Path) -> bytes:
        other.drop(parcel(2).digest)
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", read)
    assert parcel(2) not in outbox.waiting()


def resealed(body: bytes) -> bytes:
    return body + blake3.blake3(body).digest()


@pytest.mark.parametrize(("manifest_bytes", "count"), [(2**63, 0), (0, 2**61), (0, 2**32), (8, 1), (10**6, 0)])
def test_a_file_whose_lengths_lie_is_set_aside_though_its_digest_is_right(
    tmp_path: Path, manifest_bytes: int, count: int
) -> None:
    outbox = Outbox(tmp_path)
    name = tmp_path / f"{'ab' * 32}.update"
    name.write_bytes(resealed(MAGIC + struct.pack("<2Q", manifest_bytes, count) + bytes(7)))
    assert list(outbox.waiting()) == []
    assert name.with_suffix(".broken").exists()


def test_updates_are_read_one_at_a_time_and_those_alone_that_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = Outbox(tmp_path)
    for number in range(4):
        outbox.put(parcel(number))
    read: list[str] = []
    whole = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(path.stem) or whole(path))
    waiting = outbox.waiting()
    next(waiting)
    assert len(read) == 1
    assert [one.digest for one in outbox.waiting({parcel(2).digest})] == [parcel(2).digest]
    assert len(read) == 2


def test_an_update_that_is_none_is_set_aside_and_kept(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    outbox.put(parcel(1))
    outbox.set_aside(parcel(1).digest)
    assert list(outbox.waiting()) == []
    assert [path.suffix for path in tmp_path.iterdir()] == [".broken"]


HOLDER = """
import os, sys
from refold.producers.place import ClientPlace

place = ClientPlace(sys.argv[1], "toy", "ann")
place.take()
is_child = os.fork() == 0
if not is_child:
    print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def held_elsewhere(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Hold ann's place by another process, which has a child of its own."""
    command = [sys.executable, "-c", HOLDER, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_process_of_a_client_is_refused_until_the_first_is_gone_whatever_it_forked(tmp_path: Path) -> None:
    place = ClientPlace(tmp_path, "toy", "ann")
    with held_elsewhere(tmp_path) as first:
        with pytest.raises(PlaceTakenError, match="another process works as this client"):
            place.take()
        other = ClientPlace(tmp_path, "toy", "bob")
        other.take()
        other.close()
        first.kill()
        first.wait()
        # Its child lives on, until its input ends.
        place.take()
        place.close()


def test_a_client_begins_nothing_while_another_process_works_in_its_name(tmp_path: Path) -> None:
    with MemoryBus() as bus:
        federation = make(bus, tmp_path)
        assert federation.name == "toy"
        client = federation.client("ann", key=KEYS["ann"], outbox=tmp_path / "box", open_timeout_s=1.0)
        with held_elsewhere(tmp_path / "box"):
            before = {topic: bus.end_offset(Place(topic, 0)) for topic in bus.topics()}
            with pytest.raises(PlaceTakenError), client:
                pass
            assert {topic: bus.end_offset(Place(topic, 0)) for topic in bus.topics()} == before


def test_where_there_are_no_locks_nobody_is_kept_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*args: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.lockf", none)
    place = ClientPlace(tmp_path, "toy", "ann")
    place.take()
    place.close()
