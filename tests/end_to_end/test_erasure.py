"""A federation whose clients seal their updates learns the same, and one that is erased leaves no readable delta behind."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import blake3
import numpy as np
import pytest

import refold
from refold.bus.contract import Place
from refold.bus.payloads import PayloadReader
from refold.bus.ranges import records_in
from refold.cli import run
from refold.cli.doctor import symptoms
from refold.consumers.attempts import MAX_ATTEMPTS
from refold.consumers.detection import Detection
from refold.consumers.inspection import Inspector
from refold.consumers.sealing import KeyLackingError, SealingKeys, opened
from refold.federation import Federation
from refold.producers.client import Client
from refold.schemas.errors import ConfigurationError, InvalidRecord
from refold.schemas.events import ClientErased, UpdateAccepted, UpdateRejected
from refold.schemas.keys import SigningKey
from refold.schemas.sealing import SUITE, SealingKey, chunk_info
from refold.schemas.updates import Sealing
from refold.testing import SteppedServer, craft_update, eventually, random_delta, send_update
from tests.end_to_end.crowd import NAMES, SHAPE, learn

ROUNDS = 3


def made(folder: Path, *, seal: bool, shape: tuple[int, ...] = SHAPE, **plan: Any) -> Federation:
    folder.mkdir(exist_ok=True)
    settings = {"minimum": 3, "rounds": ROUNDS, "deadline_s": 10.0, "heartbeat_s": 0.05, "seed": bytes(16), **plan}
    federation = refold.create(f"sqlite:{folder}/fed.db", {"w": np.zeros(shape, "f4")}, plan=refold.Plan(**settings))
    for name in NAMES:
        federation.enroll(name, SigningKey.load_or_create(folder / f"{name}.pem").public)
        if seal:
            federation.seal(name)
    return federation


def accepted(federation: Federation, client: str | None = None) -> list[UpdateAccepted]:
    found = [event for event, _ in federation.log() if isinstance(event, UpdateAccepted)]
    return [event for event in found if client in (None, event.origin.client)]


def digests(federation: Federation) -> list[str]:
    return [federation.rebuild(round_, start=start).digest for round_ in range(federation.head + 1) for start in (0, None)]


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a federation that trained with sealed updates alone."""
    folder = tmp_path_factory.mktemp("sealed")
    with made(folder, seal=True) as federation:
        learn(federation, folder, sealed=True)
    return folder


@pytest.fixture
def folder(sealed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sealed, tmp_path / "copy"))


@pytest.fixture
def federation(folder: Path) -> Iterator[Federation]:
    with refold.connect(f"sqlite:{folder}/fed.db") as found:
        yield found


def test_sealed_updates_make_the_same_model_as_plain_ones(federation: Federation, tmp_path: Path) -> None:
    with made(tmp_path / "plain", seal=False) as plain:
        learn(plain, tmp_path / "plain")
        assert plain.rebuild().digest == federation.rebuild().digest
    report = federation.verify()
    assert report.is_sound
    assert not report.findings
    assert (report.summary.rederived, report.summary.accepted) == (ROUNDS, ROUNDS * len(NAMES))
    assert all(event.sealing is not None for event in accepted(federation))


def test_small_updates_that_travel_inside_their_manifest_are_sealed_too(tmp_path: Path) -> None:
    with made(tmp_path, seal=True, shape=(20,)) as federation:
        learn(federation, tmp_path, sealed=True)
        assert federation.verify().summary.rederived == ROUNDS
        for event in accepted(federation):
            assert event.payload is not None
            assert event.payload.inline is not None
            assert event.sealing is not None


def test_nothing_that_lies_on_the_bus_holds_a_plain_chunk(federation: Federation) -> None:
    plain = set()
    for event in accepted(federation):
        for chunk in chunks_of(federation, event, federation.keyring.sealing):
            plain.add(blake3.blake3(chunk).digest())
    assert plain
    for topic, spec in federation.bus.topics().items():
        for partition in range(spec.partitions):
            place = Place(topic, partition)
            for record in records_in(federation.bus, place, 0, federation.bus.end_offset(place) - 1):
                assert blake3.blake3(record.value or b"").digest() not in plain


def chunks_of(federation: Federation, event: UpdateAccepted, keys: SealingKeys) -> list[bytes]:
    assert event.payload is not None
    reader = PayloadReader(federation.bus, federation.topics.deltas)
    try:
        return list(opened(reader.read(event.payload), event.sealing, federation.name, event.origin, keys))
    finally:
        reader.close()


def test_an_erased_client_cannot_be_read_again_and_the_log_stays_sound(federation: Federation, folder: Path) -> None:
    before, keys = digests(federation), federation.keyring.sealing
    (lost,) = keys.held("ann")
    federation.erase("ann", "asked to")
    with federation.serve():
        eventually(lambda: not keys.held("ann"), what="the key's destruction")
    (erased,) = [event for event, _ in federation.log("rounds") if isinstance(event, ClientErased)]
    assert (erased.client, erased.key_ids, erased.reason) == ("ann", (lost,), "asked to")
    # Everything rebuilds as before, and the audit says what it cannot derive.
    assert digests(federation) == before
    report = federation.verify()
    assert report.is_sound, [str(finding) for finding in report.findings]
    assert report.summary.not_rederivable == [1, 2, 3]
    assert sorted(report.summary.erased) == [1, 2, 3]
    assert report.summary.sealed == []
    assert ["it was erased" in finding.what for finding in report.findings] == [True]
    # With all that is left on disk, nobody opens a chunk of hers; those of the others still open.
    left = [SealingKey.from_pem(path.read_bytes(), path) for path in folder.rglob("sealing/*.pem")]
    assert len(left) == 2
    for event in accepted(federation, "ann"):
        with pytest.raises(KeyLackingError):
            chunks_of(federation, event, keys)
        assert event.payload is not None
        reader = PayloadReader(federation.bus, federation.topics.deltas)
        for index, chunk in enumerate(reader.read(event.payload)):
            for key in left:
                with pytest.raises(InvalidRecord, match="does not open"):
                    key.open(chunk, chunk_info(federation.name, event.origin, index))
        reader.close()
    assert all(chunks_of(federation, event, keys) for event in accepted(federation, "bob"))


def test_an_audit_without_the_keys_is_sound_and_says_what_it_could_not_open(federation: Federation, folder: Path) -> None:
    shutil.rmtree(folder / "fed.keys")
    report = federation.verify()
    assert report.is_sound
    assert (report.summary.rederived, report.summary.replayed) == (0, ROUNDS)
    assert sorted(set(report.summary.sealed)) == [1, 2, 3]
    assert all("is not here" in finding.what for finding in report.findings)


def test_a_sealed_byte_that_changed_is_still_found_when_nobody_can_open_it(federation: Federation, folder: Path) -> None:
    shutil.rmtree(folder / "fed.keys")
    event = accepted(federation, "bob")[0]
    assert event.payload is not None
    assert event.payload.hint is not None
    place = Place(federation.topics.deltas, event.payload.hint.partition)
    federation.close()
    damage(folder / "fed.db", place, event.payload.hint.first_offset)
    with refold.connect(f"sqlite:{folder}/fed.db") as again:
        broken = [finding for finding in again.verify().findings if finding.is_broken]
    assert [finding.client for finding in broken] == ["bob"]


def damage(path: Path, place: Place, offset: int) -> None:
    """Change one byte of a record's value, and the checksum that the file keeps of it."""
    from refold.bus import open_bus

    with open_bus(f"sqlite:{path}", create=False) as bus:
        (record,) = list(records_in(bus, place, offset, offset))
    assert record.value is not None
    changed = record.value[:100] + bytes([record.value[100] ^ 1]) + record.value[101:]
    data = path.read_bytes()
    wal = Path(f"{path}-wal")
    assert not wal.exists() or wal.stat().st_size == 0
    assert data.count(record.value[50:150]) == 1
    path.write_bytes(data.replace(record.value[50:150], changed[50:150]))


# What is refused, and what stops the server.


@pytest.fixture
def open_federation(tmp_path: Path) -> Iterator[tuple[Federation, SteppedServer]]:
    """Return a federation whose rounds never close, with its server, ann keyed."""
    federation = made(tmp_path, seal=False, shape=(30,), minimum=9)
    federation.seal("ann")
    with federation, SteppedServer(federation) as server:
        server.settle()
        yield federation, server


def refusal(federation: Federation, server: SteppedServer, folder: Path, **changes: Any) -> str:
    parcel = craft_update(federation, "ann", SigningKey.load(folder / "ann.pem"), **changes)
    send_update(federation, parcel, "ann")
    server.settle()
    found = [event for event, _ in federation.log() if isinstance(event, UpdateRejected)]
    return found[-1].reasons[0] if found and found[-1].origin.digest == parcel.digest else ""


def test_what_does_not_open_is_refused_with_its_reason(
    open_federation: tuple[Federation, SteppedServer], tmp_path: Path
) -> None:
    federation, server = open_federation
    (good,) = federation.keyring.sealing.held("ann")
    assert refusal(federation, server, tmp_path, sealing=Sealing(SUITE, good)) == "decryption"
    assert refusal(federation, server, tmp_path, sealing=Sealing("rot13", good), sequence=1) == "sealing"
    assert refusal(federation, server, tmp_path, sealing=Sealing(SUITE, b"unknown!"), sequence=2) == "sealing-key"
    assert refusal(federation, server, tmp_path, sequence=3) == ""  # a plain one of the same client waits for its round
    assert federation.verify().is_sound


def test_what_is_sealed_to_a_void_key_is_refused(open_federation: tuple[Federation, SteppedServer], tmp_path: Path) -> None:
    federation, server = open_federation
    (good,) = federation.keyring.sealing.held("ann")
    federation.erase("ann")
    server.settle()
    assert federation.keyring.sealing.held("ann") == []
    assert refusal(federation, server, tmp_path, sealing=Sealing(SUITE, good)) == "erased"


def test_an_update_that_waits_when_its_client_is_erased_is_refused(
    open_federation: tuple[Federation, SteppedServer], tmp_path: Path
) -> None:
    federation, server = open_federation
    with federation.client("ann", key=tmp_path / "ann.pem", sealed=True) as client:
        task = next(client.tasks())
        receipt = task.submit({"w": task.numpy()["w"] + np.float32(0.01)}, num_examples=5)
        server.settle()
        assert receipt.outcome is None
        federation.erase("ann")
        server.settle()
        client.wait_for_news(0.1)
        assert receipt.outcome == "protocol"
        assert declines(client)
    reasons = [event.reasons[0] for event, _ in federation.log() if isinstance(event, UpdateRejected)]
    assert reasons[0] == "erased"


def declines(client: Client) -> bool:
    return client._sealer.obstacle == "erased; no sealing key"


def test_a_server_that_lacks_a_good_key_stops_and_moves_nothing_and_goes_on_when_it_has_it(
    open_federation: tuple[Federation, SteppedServer], tmp_path: Path
) -> None:
    federation, server = open_federation
    (path,) = (tmp_path / "fed.keys" / "sealing").iterdir()
    path.rename(tmp_path / "elsewhere.pem")
    with federation.client("ann", key=tmp_path / "ann.pem", sealed=True) as client:
        task = next(client.tasks())
        task.submit({"w": task.numpy()["w"] + np.float32(0.01)}, num_examples=5)
    before = len(list(federation.log()))
    server.close()
    # More lives than those after which an update that crashes its readers is given up.
    for life in range(MAX_ATTEMPTS + 1):
        lacking = SteppedServer(federation, member=f"life-{life}")
        with pytest.raises(ConfigurationError, match="not in this server's key folder"), lacking:
            lacking.settle()
    assert len(list(federation.log())) == before
    (tmp_path / "elsewhere.pem").rename(path)
    with SteppedServer(federation, member="again") as again:
        again.settle()
        # It waits for its round, without a fault.
        assert refusal(federation, again, tmp_path, sequence=9) == "one-per-round"
    assert [event.origin.sequence for event, _ in federation.log() if isinstance(event, UpdateRejected)] == [9]
    assert federation.verify().summary.waiting == 1


def test_a_crash_between_the_event_and_the_destruction_is_made_good_by_the_next_server(
    open_federation: tuple[Federation, SteppedServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    federation, server = open_federation

    def crash(*_: Any) -> None:
        raise MemoryError("killed here")

    federation.erase("ann")
    with monkeypatch.context() as patched:
        patched.setattr(SealingKeys, "destroy", crash)
        with pytest.raises(MemoryError):
            server.settle()
    assert [event for event, _ in federation.log("rounds") if isinstance(event, ClientErased)]
    assert federation.keyring.sealing.held("ann")
    server.close()
    with SteppedServer(federation, member="successor"):
        assert federation.keyring.sealing.held("ann") == []


def test_a_server_that_stands_by_destroys_its_own_copy(
    open_federation: tuple[Federation, SteppedServer], tmp_path: Path
) -> None:
    federation, server = open_federation
    other = SealingKeys(Path(shutil.copytree(tmp_path / "fed.keys" / "sealing", tmp_path / "other")))
    inspector = Inspector.of(federation.genesis, federation.keyring.secret(), other)
    standby = Detection(federation.bus, federation.topics, inspector, member="standby", clock=server.clock)
    federation.erase("ann")
    server.settle()
    assert other.held("ann")
    while standby.step(0.0) or other.held("ann"):
        pass
    standby.close()


def test_doctor_says_which_sealing_keys_are_lacking_or_left(
    open_federation: tuple[Federation, SteppedServer], tmp_path: Path
) -> None:
    federation, server = open_federation

    def sealing() -> list[tuple[str, bool]]:
        return [(found.severity.name, "void" in found.what) for found in symptoms(federation) if found.subject == "sealing"]

    assert sealing() == [("OK", False)]
    copy = Path(shutil.copytree(tmp_path / "fed.keys" / "sealing", tmp_path / "other"))
    shutil.rmtree(tmp_path / "fed.keys" / "sealing")
    assert sealing() == [("WARNING", False)]
    federation.erase("ann")
    server.settle()
    assert sealing() == [("OK", False)]
    shutil.copytree(copy, tmp_path / "fed.keys" / "sealing")
    assert sealing() == [("WARNING", True)]


def test_a_client_that_asks_for_sealing_does_not_start_without_a_key(tmp_path: Path) -> None:
    with made(tmp_path, seal=False) as federation, SteppedServer(federation) as server:
        server.settle()
        client = federation.client("bob", key=tmp_path / "bob.pem", sealed=True, open_timeout_s=0.1)
        with pytest.raises(refold.RefoldError, match="no sealing key"):
            client.__enter__()
        client.close()


def test_random_bytes_are_a_payload_like_any_other_to_the_bounds(
    open_federation: tuple[Federation, SteppedServer], tmp_path: Path
) -> None:
    federation, server = open_federation
    (good,) = federation.keyring.sealing.held("ann")
    chunk = random_delta(federation.genesis.schema)[0]
    long = (chunk + bytes(5000),)
    assert refusal(federation, server, tmp_path, sealing=Sealing(SUITE, good), chunks=long) == "lengths"
    assert refusal(federation, server, tmp_path, sealing=Sealing(SUITE, good), chunks=(b"",), sequence=1) == "decryption"


# The command line.


def test_seal_and_erase_on_the_command_line(sealed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(shutil.copytree(sealed, tmp_path / "copy"))
    bus = f"sqlite:{folder}/fed.db"

    def refold_(*words: str) -> SimpleNamespace:
        code = run([*words, "--bus", federation.url])
        said = capsys.readouterr()
        return SimpleNamespace(returncode=code, stdout=said.out, stderr=said.err)

    with refold.connect(bus) as federation, federation.serve():
        said = refold_("seal", "ann")
        assert (said.returncode, "seals to key" in said.stdout) == (0, True), said.stderr
        said = refold_("erase", "ann", "--yes", "--reason", "asked to")
        assert (said.returncode, "2 keys void" in said.stdout) == (0, True), said.stderr
        assert federation.keyring.sealing.held("ann") == []
        assert refold_("erase", "ann", "--yes").returncode == 0  # again, as on a second machine
        assert refold_("erase", "nobody", "--yes").returncode == 4
    said = refold_("verify")
    assert said.returncode == 0, said.stdout
    assert "rounds 1, 2, 3 are not re-derivable, a client of theirs was erased" in said.stdout
