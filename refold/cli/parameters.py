"""Initial parameters from a file that anyone may have made: nothing is unpickled, or unpacked beyond the memory there is."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import psutil

from refold.schemas.errors import ConfigurationError, NotFoundError, UsageError
from refold.state.halves import Bfloat16


def read_parameters(path: Path) -> Mapping[str, Any]:
    """Return the arrays of a ``.npz`` or ``.safetensors`` file.

    Raises
    ------
    NotFoundError, UsageError, ConfigurationError
        There is no such file, it has another ending, or is not what its ending says.
    """
    if path.is_dir():
        raise UsageError("this is a folder", path=path, hint="give a .npz or .safetensors file")
    if not path.is_file():
        raise NotFoundError("no such file", path=path)
    if path.suffix not in (".npz", ".safetensors"):
        raise UsageError("not a file of parameters", path=path, hint="give a .npz or .safetensors file")
    with path.open("rb") as file:  # What cannot be read at all is an error of the system's.
        try:
            return _read_npz(file) if path.suffix == ".npz" else _read_safetensors(path)
        except ConfigurationError:
            raise
        except Exception as error:  # Each library has errors of its own for a broken file.
            raise ConfigurationError(f"not a sound {path.suffix} file: {error}", path=path) from error


def _read_safetensors(path: Path) -> dict[str, Any]:
    """Its arrays lie in the file as they are, so that the file's own size bounds them."""
    from safetensors.numpy import load_file

    try:
        return dict(load_file(path))
    except (KeyError, TypeError):  # Its way to say that NumPy has no such dtype.
        return _read_halves(path)


def _read_halves(path: Path) -> dict[str, Any]:
    """Read a file whose tensors are bfloat16, or some of them."""
    from safetensors import deserialize

    found: dict[str, Any] = {}
    for name, tensor in deserialize(path.read_bytes()):  # type: ignore[no-untyped-call]
        dtype, shape, data = tensor["dtype"], tensor["shape"], tensor["data"]
        if dtype == "BF16":
            found[name] = Bfloat16.from_bytes(data, shape)
        elif dtype in _OTHERS:
            found[name] = np.frombuffer(data, _OTHERS[dtype]).reshape(shape)
        else:
            raise ValueError(f"{name} has dtype {dtype}")
    return found


_OTHERS = {"F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1", "BOOL": "?"}


def _read_npz(file: IO[bytes]) -> dict[str, Any]:
    with zipfile.ZipFile(file) as archive:
        _check_sizes(archive)
    file.seek(0)
    with np.load(file, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _check_sizes(archive: zipfile.ZipFile) -> None:
    """Compare what the arrays' heads name with the memory there is, before any of it is unpacked: zeros pack 1,000 times."""
    infos = [info for info in archive.infolist() if info.filename.endswith(".npy")]
    if len({info.filename for info in infos}) != len(infos):
        raise ValueError("an array is in it twice")
    named = sum(_named_bytes(archive, info) for info in infos)
    room = psutil.virtual_memory().available
    if named > room:
        raise ConfigurationError(f"the arrays would take {named:,} bytes, and {room:,} are free", path=archive.filename)


def _named_bytes(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> int:
    """Return how large an array is by its own head; its entry must be as long."""
    with archive.open(info) as entry:
        version = np.lib.format.read_magic(entry)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"{info.filename} is of version {version}")
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(entry)
        if dtype.hasobject:
            raise ValueError(f"{info.filename} holds objects, which only pickle could read")
        size = int(np.prod(shape, dtype=object)) * dtype.itemsize
        if min(shape, default=0) < 0 or entry.tell() + size != info.file_size:
            raise ValueError(f"{info.filename} is not as long as its shape {shape} says")
        return size
