"""Integers of a whole model in one file, made whole or not at all, in the place of an older one.

::

    8 bytes   magic
    16 bytes  whose: BLAKE3 of federation and client
    32 bytes  digest of the update: the one that left this, or the last one taken in
    32 bytes  digest of the update that the residual had last taken in when this was left; zeros where there was no residual
    8 bytes   round, little-endian, and 32 bytes, the digest of its parameters: what the amount rests on
    32 bytes  digest of the model's schema
    …         int32, little-endian, of each float tensor in the schema's order
    32 bytes  BLAKE3 of all before

`write_amount` writes it beside its name first (`refold.schemas.files.replacing`); what a crash leaves there, the outbox's next
start removes.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path

import blake3
import numpy as np
import numpy.typing as npt

from refold.schemas.errors import ConfigurationError, StorageFullError
from refold.schemas.files import replacing
from refold.schemas.model import ModelSchema

MAGIC = b"refold\x02\x01"

Amount = list[npt.NDArray[np.int32]]
"""For each tensor of the schema its flat integers, in lattice steps; empty for integer tensors."""

_HEAD = struct.Struct("<8s16s32s32sQ32s32s")
_DIGEST_BYTES = 32


@dataclass(frozen=True, slots=True)
class Basis:
    """What a file says of itself, its integers aside."""

    owner: bytes
    update: bytes
    after: bytes
    round: int
    parameters_digest: bytes
    schema_digest: bytes

    @classmethod
    def unpack(cls, head: bytes) -> Basis:
        """Read a file's head.

        Raises
        ------
        ConfigurationError
            It is none.
        """
        if len(head) != _HEAD.size or not head.startswith(MAGIC):
            raise ConfigurationError("not a residual")
        return cls(*_HEAD.unpack(head)[1:])

    def pack(self) -> bytes:
        """Return the head's bytes."""
        return _HEAD.pack(MAGIC, self.owner, self.update, self.after, self.round, self.parameters_digest, self.schema_digest)


def write_amount(path: Path, basis: Basis, amount: Amount) -> None:
    """Write a file, or replace it.

    Raises
    ------
    StorageFullError
        There is no room; what was there stays.
    """
    try:
        with replacing(path) as file:
            hasher = blake3.blake3(basis.pack())
            file.write(basis.pack())
            for array in amount:
                data = _bytes_of(np.ascontiguousarray(array, "<i4"))
                hasher.update(data)
                file.write(data)
            file.write(hasher.digest())
    except OSError as error:
        raise StorageFullError(
            f"the residual could not be kept: {error.strerror}", path=path, hint="make room and submit again"
        ) from error


def read_basis(path: Path) -> Basis:
    """Read a file's head alone.

    Raises
    ------
    FileNotFoundError
        There is none.
    ConfigurationError
        It is damaged.
    """
    with path.open("rb") as file:
        return Basis.unpack(file.read(_HEAD.size))


def read_amount(path: Path, schema: ModelSchema) -> tuple[Basis, Amount]:
    """Read a file whole; the arrays are the caller's own.

    Raises
    ------
    FileNotFoundError
        There is none.
    ConfigurationError
        It is damaged, or of another model.
    """
    amount = [np.empty(tensor.size if tensor.is_float else 0, "<i4") for tensor in schema.tensors]
    with path.open("rb") as file:
        head = file.read(_HEAD.size)
        basis = Basis.unpack(head)
        whole = _HEAD.size + sum(array.nbytes for array in amount) + _DIGEST_BYTES
        if basis.schema_digest != schema.digest or os.fstat(file.fileno()).st_size != whole:
            raise ConfigurationError("not a whole residual of this model", path=path)
        hasher = blake3.blake3(head)
        for array in amount:
            data = _bytes_of(array)
            file.readinto(data)
            hasher.update(data)
        if file.read() != hasher.digest():
            raise ConfigurationError("a damaged residual", path=path)
    return basis, amount


def _bytes_of(array: npt.NDArray[np.int32]) -> memoryview:
    """Return an array's own memory; an empty one has none that could be cast."""
    return array.data.cast("B") if array.size else memoryview(bytearray())
