"""Keys: private ones stay private, and a signature means one key, one purpose, one message."""

import base64
import os
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key

from refold.schemas import keys
from refold.schemas.errors import ConfigurationError, NotFoundError
from refold.schemas.keys import COMMAND_TAG, HEARTBEAT_TAG, UPDATE_TAG, SigningKey, key_id, load_public, public_pem, verify

ORDER = 2**252 + 27742317777372353535851937790883648493
"""Of the group of Ed25519 (RFC 8032)."""


def test_a_key_is_made_once_readable_by_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "ward.pem"
    before = os.umask(0)
    try:
        made = SigningKey.load_or_create(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert SigningKey.load_or_create(path).public == made.public
    assert SigningKey.load(path).key_id == key_id(made.public) == made.key_id
    with pytest.raises(FileExistsError):
        SigningKey.generate().save(path)


def test_a_signature_is_good_for_one_key_purpose_and_message() -> None:
    key, other = SigningKey.generate(), SigningKey.generate()
    signature = key.sign(UPDATE_TAG, b"message")
    assert verify(key.public, UPDATE_TAG, b"message", signature)
    assert not verify(key.public, COMMAND_TAG, b"message", signature)
    assert not verify(key.public, UPDATE_TAG, b"another", signature)
    assert not verify(other.public, UPDATE_TAG, b"message", signature)
    assert not verify(b"short", UPDATE_TAG, b"message", signature)
    assert not verify(key.public, UPDATE_TAG, b"message", b"short")
    for place in range(64):
        flipped = bytearray(signature)
        flipped[place] ^= 1
        assert not verify(key.public, UPDATE_TAG, b"message", bytes(flipped))


def test_f35_the_other_form_of_a_malleable_signature_is_refused() -> None:
    key = SigningKey.generate()
    signature = key.sign(UPDATE_TAG, b"message")
    s = int.from_bytes(signature[32:], "little")
    assert s < ORDER
    malleable = signature[:32] + (s + ORDER).to_bytes(32, "little")
    assert not verify(key.public, UPDATE_TAG, b"message", malleable)


@pytest.mark.parametrize("form", ["public pem", "private pem", "hexadecimal", "raw"])
def test_a_public_key_is_read_from_whatever_form_it_has(tmp_path: Path, form: str) -> None:
    key, path = SigningKey.generate(), tmp_path / "key"
    if form == "private pem":
        key.save(path)
    else:
        path.write_bytes(
            {"public pem": public_pem(key.public), "hexadecimal": key.public.hex().encode() + b"\n", "raw": key.public}[form]
        )
    assert load_public(path) == key.public


@pytest.mark.parametrize(
    "content", [b"", b"nonsense", b"ab" * 31, b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", b"\xff" * 40]
)
def test_what_is_no_key_is_a_configuration_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError):
        load_public(path)
    with pytest.raises(ConfigurationError):
        SigningKey.load(path)


def test_a_key_of_another_kind_is_a_configuration_error(tmp_path: Path) -> None:
    path, rsa = tmp_path / "key", generate_private_key(65537, 2048)
    path.write_bytes(
        rsa.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    with pytest.raises(ConfigurationError, match="Ed25519"):
        SigningKey.load(path)
    path.write_bytes(rsa.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo))
    with pytest.raises(ConfigurationError):
        load_public(path)


def test_a_key_that_is_not_there_says_how_to_make_one(tmp_path: Path) -> None:
    for load in (SigningKey.load, load_public):
        with pytest.raises(NotFoundError):
            load(tmp_path / "none")


def test_the_same_seed_makes_the_same_key_and_another_seed_another() -> None:
    assert SigningKey.from_seed(bytes(32)).public == SigningKey.from_seed(bytes(32)).public
    assert SigningKey.from_seed(bytes(32)).public != SigningKey.from_seed(b"\1" * 32).public


def test_a_key_of_a_kind_that_nobody_knows_is_a_setting_that_is_wrong(tmp_path: Path) -> None:
    pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    strange = pem.replace(b"\x2a\x86\x48\xce\x3d\x02\x01", b"\x2a\x86\x48\xce\x3d\x02\x7f")
    assert strange != pem
    text = base64.encodebytes(strange).decode()
    path = tmp_path / "strange.pem"
    path.write_text(f"-----BEGIN PRIVATE KEY-----\n{text}-----END PRIVATE KEY-----\n")
    for read in (SigningKey.load, load_public):
        with pytest.raises(ConfigurationError, match="not a private key"):
            read(path)


def test_a_file_that_does_not_end_is_not_read_to_its_end(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="larger than"):
        load_public("/dev/zero")
    with pytest.raises(ConfigurationError, match="larger than"):
        SigningKey.load("/dev/zero")


@pytest.mark.parametrize("sodium", [keys.SODIUM, None], ids=["libsodium where it is installed", "without it"])
def test_a_beats_signature_is_judged_alike_with_and_without_libsodium(monkeypatch: pytest.MonkeyPatch, sodium: object) -> None:
    monkeypatch.setattr(keys, "SODIUM", sodium)
    key, other = SigningKey.generate(), SigningKey.generate()
    signature, weak = key.sign(HEARTBEAT_TAG, b"beat"), min(keys.WEAK_KEYS)
    assert keys.verify_beat(key.public, HEARTBEAT_TAG, b"beat", signature)
    for public, tag, message, said in (
        (other.public, HEARTBEAT_TAG, b"beat", signature),
        (key.public, UPDATE_TAG, b"beat", signature),
        (key.public, HEARTBEAT_TAG, b"beet", signature),
        (key.public, HEARTBEAT_TAG, b"beat", signature[:-1]),
        (key.public, HEARTBEAT_TAG, b"beat", signature + b"\0"),
        (key.public, HEARTBEAT_TAG, b"beat", b""),
        (weak, HEARTBEAT_TAG, b"beat", weak + bytes(32)),
    ):
        assert not keys.verify_beat(public, tag, message, said)
