"""Sealing: what a client seals opens in its place with its key alone, and a key that is destroyed is gone."""

import hmac
import os
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from refold.consumers.sealing import GOOD, UNKNOWN, VOID, KeyLackingError, SealingKeys, SealingLog, keyed, opened
from refold.producers.sealer import Place
from refold.schemas.canonical import decode, encode
from refold.schemas.erasure import ClientErased, ClientKeyed, EraseClient, KeyClient
from refold.schemas.errors import ConfigurationError, InvalidRecord
from refold.schemas.payload import CHUNK_BYTES
from refold.schemas.sealing import OVERHEAD_BYTES, ROOM_BYTES, SUITE, SealingKey, chunk_info, seal, sealing_key_id
from refold.schemas.updates import ClientUpdate, Sealing, UpdateBody, update_digest

GOLDEN = Path(__file__).parent / "golden"
HERE = Place("ann", 7, b"nonce678", 3)
ID = bytes(16)


def info(index: int = 0) -> bytes:
    return chunk_info("toy", HERE, index)


# The chunk.


@given(chunk=st.binary(max_size=2000), index=st.integers(0, 2**32))
def test_what_is_sealed_opens_in_its_place(chunk: bytes, index: int) -> None:
    key = SealingKey.generate()
    sealed = seal(key.public, chunk, info(index))
    assert len(sealed) == len(chunk) + OVERHEAD_BYTES
    assert key.open(sealed, info(index)) == chunk


def test_the_largest_chunk_that_may_be_sealed_is_as_large_as_a_chunk_may_be() -> None:
    key = SealingKey.generate()
    sealed = seal(key.public, bytes(ROOM_BYTES), info())
    assert len(sealed) == CHUNK_BYTES
    assert key.open(sealed, info()) == bytes(ROOM_BYTES)


def test_every_byte_that_is_changed_and_every_byte_that_is_cut_is_found() -> None:
    key = SealingKey.generate()
    sealed = seal(key.public, os.urandom(40), info())
    changed = [sealed[:at] + bytes([sealed[at] ^ bit]) + sealed[at + 1 :] for at in range(len(sealed)) for bit in (1, 64, 128)]
    cut = [sealed[:at] for at in range(len(sealed))] + [sealed + b"\0", bytes(len(sealed)), b"\xff" * len(sealed)]
    # X25519 ignores the highest bit of a point, but the key schedule does not: no other bytes mean the same.
    for other in changed + cut:
        with pytest.raises(InvalidRecord) as caught:
            key.open(other, info())
        assert caught.value.reason == "decryption"


@pytest.mark.parametrize(
    "other",
    [
        chunk_info("toy", HERE, 1),
        chunk_info("tox", HERE, 0),
        chunk_info("toy", replace(HERE, client="bob"), 0),
        chunk_info("toy", replace(HERE, session_index=8), 0),
        chunk_info("toy", replace(HERE, session_nonce=b"NONCE678"), 0),
        chunk_info("toy", replace(HERE, sequence=4), 0),
    ],
)
def test_a_chunk_does_not_open_in_another_place(other: bytes) -> None:
    key = SealingKey.generate()
    with pytest.raises(InvalidRecord, match="does not open"):
        key.open(seal(key.public, b"delta", info()), other)


def test_a_chunk_does_not_open_with_another_key() -> None:
    with pytest.raises(InvalidRecord, match="does not open"):
        SealingKey.generate().open(seal(SealingKey.generate().public, b"delta", info()), info())


def extract(salt: bytes, suite: bytes, label: bytes, secret: bytes) -> bytes:
    return hmac.digest(salt, b"HPKE-v1" + suite + label + secret, "sha256")


def expand(key: bytes, suite: bytes, label: bytes, about: bytes, length: int) -> bytes:
    said = length.to_bytes(2, "big") + b"HPKE-v1" + suite + label + about
    out, block = b"", b""
    for number in range(1, -(-length // 32) + 1):
        block = hmac.digest(key, block + said + bytes([number]), "sha256")
        out += block
    return out[:length]


def test_a_sealed_chunk_is_a_message_of_rfc_9180_and_opens_without_refold() -> None:
    """HPKE's base mode by hand: sections 4.1 and 5.1 of the RFC, from X25519, HMAC and AES alone."""
    private = X25519PrivateKey.generate()
    public = private.public_key().public_bytes_raw()
    sealed = seal(public, b"a delta", info())
    enc, ciphertext = sealed[:32], sealed[32:]
    kem, suite = b"KEM\x00\x20", b"HPKE\x00\x20\x00\x01\x00\x02"
    shared = private.exchange(X25519PublicKey.from_public_bytes(enc))
    secret = expand(extract(b"", kem, b"eae_prk", shared), kem, b"shared_secret", enc + public, 32)
    context = b"\0" + extract(b"", suite, b"psk_id_hash", b"") + extract(b"", suite, b"info_hash", info())
    schedule = extract(secret, suite, b"secret", b"")
    key, nonce = expand(schedule, suite, b"key", context, 32), expand(schedule, suite, b"base_nonce", context, 12)
    assert AESGCM(key).decrypt(nonce, ciphertext, b"") == b"a delta"


# The body.


def body(sealing: Sealing | None) -> UpdateBody:
    return replace(decode(bytes.fromhex((GOLDEN / "UpdateBody.v1.hex").read_text()), UpdateBody), sealing=sealing)


def test_an_update_that_is_not_sealed_keeps_the_bytes_and_the_digest_of_version_1() -> None:
    before = bytes.fromhex((GOLDEN / "UpdateBody.v1.hex").read_text())
    manifest = bytes.fromhex((GOLDEN / "ClientUpdate.v1.hex").read_text())
    assert encode(body(None)) == before
    assert encode(decode(manifest, ClientUpdate)) == manifest
    sealed = body(Sealing(SUITE, bytes(8)))
    assert encode(sealed)[:5] == bytes([0xDC, 0, 21, 20, 2])
    assert decode(encode(sealed)) == sealed
    assert update_digest(sealed) != update_digest(body(None))


def test_an_update_that_is_not_sealed_is_refused_in_version_2() -> None:
    """Otherwise it would have two digests, and a writer of another version would give it another one."""
    plain = bytes.fromhex((GOLDEN / "UpdateBody.v1.hex").read_text())
    assert plain[:4] == bytes([0xDC, 0, 20, 20])
    with pytest.raises(InvalidRecord) as caught:
        decode(bytes([0xDC, 0, 21, 20, 2]) + plain[5:] + b"\xc0")
    assert caught.value.reason == "not-canonical"


# The folder.


def test_keys_are_kept_by_client_and_read_by_their_owner_only(tmp_path: Path) -> None:
    keys = SealingKeys(tmp_path / "sealing")
    one, two = keys.create("ann"), keys.create("ann")
    other = keys.create("a/../n\N{LATIN SMALL LETTER U WITH DIAERESIS}")
    assert keys.held("ann") == sorted([one.key_id, two.key_id])
    found = keys.find("ann", one.key_id)
    assert found is not None
    assert found.open(seal(one.public, b"x", b"y"), b"y") == b"x"
    assert keys.find("bob", one.key_id) is None
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "sealing").iterdir()} == {0o600}
    assert keys.held(other.key_id.hex()) == []


def test_a_destroyed_key_is_overwritten_before_it_loses_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = SealingKeys(tmp_path)
    key, other = keys.create("ann"), keys.create("ann")
    (path,) = tmp_path.glob(f"*.{key.key_id.hex()}.pem")
    before = path.read_bytes()
    os.link(path, tmp_path / "seen")  # what a crash before the name goes would leave
    assert keys.destroy("ann", [key.key_id]) == 1
    left = (tmp_path / "seen").read_bytes()
    assert len(left) == len(before)
    assert left != before
    assert b"PRIVATE" not in left
    assert keys.held("ann") == [other.key_id]
    assert keys.destroy("ann", [key.key_id]) == 0


def test_a_key_that_two_processes_destroy_at_once_is_destroyed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, opening = SealingKeys(tmp_path).create("ann"), Path.open
    (path,) = tmp_path.glob("*.pem")

    def opened_late(self: Path, *said: Any, **how: Any) -> IO[Any]:
        path.unlink(missing_ok=True)
        return opening(self, *said, **how)

    monkeypatch.setattr(Path, "open", opened_late)
    assert SealingKeys(tmp_path).destroy("ann", [key.key_id]) == 0


def test_a_key_that_is_being_destroyed_is_one_that_is_lacking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys, sync = SealingKeys(tmp_path), os.fsync
    key, lacking = keys.create("ann"), []

    def meanwhile(descriptor: int) -> None:
        with pytest.raises(KeyLackingError):
            keys.require("ann", key.key_id)
        lacking.append(key.key_id)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", meanwhile)
    assert keys.destroy("ann", [key.key_id]) == 1
    assert lacking


def test_a_key_under_anothers_name_is_an_error_and_not_tried(tmp_path: Path) -> None:
    keys = SealingKeys(tmp_path)
    one, two = keys.create("ann"), keys.create("ann")
    (path,) = tmp_path.glob(f"*.{one.key_id.hex()}.pem")
    (wrong,) = tmp_path.glob(f"*.{two.key_id.hex()}.pem")
    wrong.replace(path)
    with pytest.raises(ConfigurationError, match="under another one's name"):
        keys.find("ann", one.key_id)


def test_a_reader_without_keys_opens_what_is_plain_and_says_of_the_rest_what_it_lacks() -> None:
    sealing = Sealing(SUITE, bytes(8))
    assert list(opened([b"a", b"b"], None, "toy", HERE, SealingKeys())) == [b"a", b"b"]
    with pytest.raises(KeyLackingError, match="not in this server's key folder"):
        list(opened([b"a"], sealing, "toy", HERE, SealingKeys()))
    with pytest.raises(InvalidRecord, match="no suite"):
        list(opened([b"a"], replace(sealing, suite="rot13"), "toy", HERE, SealingKeys()))


# The log.


def test_the_log_says_of_each_key_whether_it_is_good_void_or_unknown() -> None:
    log, keys = SealingLog(), [SealingKey.generate() for _ in range(3)]
    (first,) = keyed(log, KeyClient("ann", keys[0].public), ID)
    log.fold(first)
    assert keyed(log, KeyClient("ann", keys[0].public), ID) == []
    log.fold(ClientKeyed("ann", keys[1].public, ID))
    assert log.good("ann") == (keys[0].key_id, keys[1].key_id)
    (erased,) = keyed(log, EraseClient("ann", "asked to"), ID)
    assert erased == ClientErased("ann", (keys[0].key_id, keys[1].key_id), "asked to", ID)
    log.fold(erased)
    assert keyed(log, EraseClient("ann", "again"), ID) == []
    assert keyed(log, KeyClient("ann", keys[0].public), ID) == []  # what was erased stays so
    log.fold(ClientKeyed("ann", keys[2].public, ID))
    assert [log.standing("ann", key.key_id) for key in keys] == [VOID, VOID, GOOD]
    assert log.standing("bob", keys[2].key_id) == UNKNOWN
    faults = [log.fault("ann", Sealing(SUITE, key_id)) for key_id in (keys[0].key_id, bytes(8), keys[2].key_id)]
    assert faults == ["erased", "sealing-key", ""]
    assert log.fault("ann", None) == ""
    assert sealing_key_id(keys[0].public) == keys[0].key_id
