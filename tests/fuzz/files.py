"""Files that somebody else may have made: keys, outboxes, residuals, settings, parameters, bus files."""

from __future__ import annotations

import io
import os
import struct
import tempfile
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from random import Random

import blake3
import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

import refold
from refold.bus import Place
from refold.bus._sqlite_file import PAGE_BYTES
from refold.bus.ledger import read_all
from refold.cli.parameters import read_parameters
from refold.cli.settings import FILE, check, load
from refold.cli.verbs import cli
from refold.keyring import Keyring
from refold.producers.checkpoint_file import decode_checkpoint, write_checkpoint
from refold.producers.outbox import Outbox, Parcel
from refold.producers.residual_file import Basis, read_amount, write_amount
from refold.producers.trees import pack
from refold.schemas.errors import (
    BusError,
    ConfigurationError,
    IntegrityError,
    InvalidRecord,
    NotFoundError,
    UsageError,
)
from refold.schemas.keys import SigningKey, load_public, public_pem
from tests.fuzz import samples
from tests.fuzz.decoder import TAKEN, Decoder, Defect, Input
from tests.fuzz.mutating import texts

ROOM = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
_DIGEST_BYTES = 32


@cache
def folder() -> Path:
    """Return a folder in memory for the files of this process."""
    return Path(tempfile.mkdtemp(prefix="refold-fuzz-", dir=ROOM))


def decoders() -> Iterator[Decoder]:
    """Yield one for each kind of file."""
    wrong, refused = (ConfigurationError,), frozenset({TAKEN, "ConfigurationError"})
    yield Decoder("public-keys", public_key_seeds, judge_public_key, errors=wrong, changes=(texts,), reaches=refused)
    yield Decoder("private-keys", private_key_seeds, judge_private_key, errors=wrong, reaches=refused)
    yield Decoder("server-secret", lambda: [(bytes(32),)], judge_secret, errors=wrong, reaches=refused)
    yield Decoder("outbox", outbox_seeds, judge_outbox, mend=sealed, reaches=frozenset({TAKEN, "broken"}))
    yield Decoder("residual", residual_seeds, judge_residual, errors=wrong, mend=sealed, reaches=refused)
    yield Decoder(
        "client-checkpoint", checkpoint_seeds, judge_checkpoint, mend=summed, reaches=frozenset({TAKEN, "form", "root-digest"})
    )
    yield Decoder("settings", settings_seeds, judge_settings, errors=wrong, changes=(texts,), reaches=refused)
    yield Decoder("npz", npz_seeds, judge_npz, errors=(ConfigurationError, UsageError), reaches=refused)
    yield Decoder("safetensors", safetensors_seeds, judge_safetensors, errors=wrong, reaches=refused)
    errors = (BusError, ConfigurationError, IntegrityError, NotFoundError, UsageError, InvalidRecord)
    yield Decoder("bus-file", bus_file_seeds, judge_bus_file, errors=errors, reaches=refused, cost=20)


def written(name: str, data: bytes) -> Path:
    """Return a file with these bytes."""
    path = folder() / name
    path.write_bytes(data)
    return path


@cache
def _other_keys() -> tuple[bytes, ...]:
    made = (rsa.generate_private_key(65_537, 1024), ec.generate_private_key(ec.SECP256R1()))
    private = [key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) for key in made]
    public = [key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo) for key in made]
    return (*private, *public)


@cache
def private_key_seeds() -> tuple[Input, ...]:
    """Return keys in PEM, ours and others'."""
    path = folder() / "seed.pem"
    path.unlink(missing_ok=True)
    samples.KEY.save(path)
    return ((path.read_bytes(),), *((pem,) for pem in _other_keys()))


@cache
def public_key_seeds() -> tuple[Input, ...]:
    """Return public keys in every form that is taken."""
    public = samples.KEY.public
    return ((public_pem(public),), (public.hex().encode(),), (public,), *private_key_seeds())


def judge_public_key(value: Input) -> str:
    """Read a public key."""
    found = load_public(written("public", value[0]))
    if len(found) != 32:
        raise Defect("a public key that is not 32 bytes")
    return TAKEN


def judge_private_key(value: Input) -> str:
    """Read a private key and sign with it."""
    key = SigningKey.load(written("private.pem", value[0]))
    assert len(key.sign(b"tag", b"message")) == 64
    return TAKEN


def judge_secret(value: Input) -> str:
    """Read a server's secret."""
    written("server.secret", value[0])
    assert len(Keyring(folder()).secret()) == 32
    return TAKEN


def sealed(value: Input, _chance: Random) -> Input:
    """Make the digest at a file's end right."""
    body = value[0][:-_DIGEST_BYTES]
    return (body + blake3.blake3(body).digest(), *value[1:])


@cache
def outbox_seeds() -> tuple[Input, ...]:
    """Return files that an outbox wrote."""
    found = []
    for chunks in ((), (b"one", b"two" * 100)):
        box = Outbox(folder() / f"outbox-{len(chunks)}")
        digest = bytes([len(chunks)]) * 32
        box.put(Parcel(digest, samples.updates("grid")[0][0], chunks))
        found.append(((box.folder / f"{digest.hex()}.update").read_bytes(),))
    return tuple(found)


def judge_outbox(value: Input) -> str:
    """Read an outbox with this file in it."""
    box = Outbox(folder() / "outbox")
    name = box.folder / f"{'ab' * 32}.update"
    name.write_bytes(value[0])
    try:
        found = list(box.waiting())
        size = sum(len(parcel.manifest) + sum(map(len, parcel.chunks)) for parcel in found)
        if size > len(value[0]) or bool(found) == name.with_suffix(".broken").exists():
            raise Defect("an outbox made something of a file, and did not")
        return TAKEN if found else "broken"
    finally:
        for path in box.folder.iterdir():
            path.unlink()


@cache
def residual_seeds() -> tuple[Input, ...]:
    """Return a residual of the sample's model."""
    schema = samples.federation().genesis.schema
    path = folder() / "seed.residual"
    basis = Basis(bytes(16), bytes(32), bytes(32), 3, bytes(32), schema.digest)
    write_amount(path, basis, [(a if a.dtype == np.int32 else a[:0]).astype("<i4") for a in samples.arrays(1, 40.0)])
    return ((path.read_bytes(),),)


def judge_residual(value: Input) -> str:
    """Read a residual."""
    schema = samples.federation().genesis.schema
    basis, amount = read_amount(written("residual", value[0]), schema)
    if basis.schema_digest != schema.digest or [len(array) for array in amount] != [
        tensor.size if tensor.is_float else 0 for tensor in schema.tensors
    ]:
        raise Defect("a residual of another model")
    return TAKEN


@cache
def checkpoint_seeds() -> tuple[Input, ...]:
    """Return a checkpoint of what a training program holds."""
    path = folder() / "seed.checkpoint"
    tree = {
        "model": {"w": np.ones((3, 4), "f4"), 1: [np.float64(2.0), (None, True, 1 << 80)]},
        "seen": Counter({"a": 3}),
        "t": "x",
    }
    write_checkpoint(path, pack(tree, "it"))
    return ((path.read_bytes(),),)


def summed(value: Input, _chance: Random) -> Input:
    """Make a checkpoint's checksum right again."""
    data = value[0]
    return (data[:8] + blake3.blake3(data[40:]).digest() + data[40:],)


def judge_checkpoint(value: Input) -> str:
    """Read a client's checkpoint; nothing but plain values and numbers may come out."""
    check_plain(decode_checkpoint(value[0]))
    return TAKEN


def check_plain(value: object) -> None:
    """Demand that a tree holds nothing that could act."""
    match value:
        case dict():
            for key, item in value.items():
                check_plain(key)
                check_plain(item)
        case list() | tuple():
            for item in value:
                check_plain(item)
        case np.ndarray() | np.generic():
            assert not value.dtype.hasobject
        case None | bool() | int() | float() | str() | bytes():
            pass
        case _:
            raise Defect(f"a {type(value).__name__} came out of a checkpoint")


@cache
def settings_seeds() -> tuple[Input, ...]:
    """Return sound settings."""
    texts = (
        'bus = "sqlite:hospital.db"\nkeys = "keys"\njson = true\n',
        '[serve]\nuntil-end = true\nmember = "a"\n\n[init]\nrounds = 12\nlr = 1e-3\n',
        'bus = """sqlite:x"""\n[log]\nfollow = false\n# a word\n',
    )
    return tuple((text.encode(),) for text in texts)


def judge_settings(value: Input) -> str:
    """Read ``refold.toml`` for every verb."""
    path = written(FILE, value[0])
    for verb, settings in load(path, cli.commands).items():
        check(path, verb, settings, [parameter.name for parameter in cli.commands[verb].params])
    return TAKEN


@cache
def npz_seeds() -> tuple[Input, ...]:
    """Return archives of arrays, packed and not, and one with an object in it."""
    found = []
    for save in (np.savez, np.savez_compressed):
        room = io.BytesIO()
        save(room, w=np.ones((3, 4), "f4"), n=np.arange(3), flag=np.array(True))
        found.append((room.getvalue(),))
    return tuple(found)


def judge_npz(value: Input) -> str:
    """Read initial parameters from an archive."""
    return _judge_parameters(written("initial.npz", value[0]))


@cache
def safetensors_seeds() -> tuple[Input, ...]:
    """Return a file of the format."""
    from safetensors.numpy import save

    return ((save({"w": np.ones((3, 4), "f4"), "n": np.arange(3)}),),)


def judge_safetensors(value: Input) -> str:
    """Read initial parameters."""
    return _judge_parameters(written("initial.safetensors", value[0]))


def _judge_parameters(path: Path) -> str:
    for name, array in read_parameters(path).items():
        if not isinstance(name, str) or np.asarray(array).dtype.hasobject:
            raise Defect(f"an array of objects, {name!r}")
    return TAKEN


EDIT = struct.Struct("<HHBx")
"""A page, a place counted from its end, and a byte to be put there."""


@cache
def _bus_file() -> bytes:
    """Return a small federation's bus file."""
    path = folder() / "seed.db"
    with refold.create(f"sqlite:{path}", {"w": np.zeros(3, "f4")}, keys=folder() / "bus.keys", partitions=1) as made:
        made.enroll("ann", samples.KEY.public)
    return path.read_bytes()


@cache
def bus_file_seeds() -> tuple[Input, ...]:
    """Return edits of that file: in every page's head, and in its cells, which begin at its end."""
    pages = len(_bus_file()) // PAGE_BYTES
    at = (PAGE_BYTES - 1, PAGE_BYTES - 4, PAGE_BYTES - 9, 1, 20, 200)
    return ((b"",), *((EDIT.pack(page, place, 0x41),) for page in range(pages) for place in at))


def judge_bus_file(value: Input) -> str:
    """Edit the bus file, open it and read everything in it."""
    data = bytearray(_bus_file())
    for page, place, byte in EDIT.iter_unpack(value[0][: len(value[0]) // EDIT.size * EDIT.size]):
        data[(page + 1) * PAGE_BYTES % len(data) - 1 - place] = byte
    for name in ("given.db", "given.db-wal", "given.db-shm"):
        (folder() / name).unlink(missing_ok=True)
    path = written("given.db", bytes(data))
    with refold.connect(f"sqlite:{path}", keys=folder() / "bus.keys") as found:
        read_all(found.bus, found.topics.accepted)
        for name, spec in found.bus.topics().items():
            with found.bus.consumer() as consumer:
                consumer.assign([Place(name, partition) for partition in range(spec.partitions)])
                for record in consumer.poll():
                    assert isinstance(record.value, bytes | None)
                    assert isinstance(record.key, bytes | None)
    return TAKEN
