"""What a training program remembers, as bytes and back, with nothing unpickled.

A tree is what ``state_dict()`` gives: mappings, lists, tuples, numbers, texts, arrays and tensors, nested. It becomes msgpack
that says its form, and safetensors that holds its numbers. Reading makes plain values only: no class is looked up by name and
no code is run, so a file that somebody changed can be wrong but cannot act.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import blake3
import msgpack
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from refold.schemas.errors import InvalidRecord, UsageError

MAX_DEPTH = 32
MAX_NODES = 1 << 20

_PLAIN = (bool, int, float, str, bytes)
_INT64 = range(-(2**63), 2**63)
_DTYPES = ("bool", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)), "float16", "float32", "float64")
_AS_BITS = {"bfloat16": "int16", "float8_e4m3fn": "uint8", "float8_e5m2": "uint8"}
"""What NumPy has no dtype for is kept as integers of the same bits."""


@dataclass(slots=True)
class Packed:
    """A tree taken apart.

    Parameters
    ----------
    form
        What msgpack can write: plain values, and lists that begin with a letter for all else.
    tensors
        By number; those of dtypes that NumPy lacks as integers of the same bits.
    """

    form: Any = None
    tensors: dict[str, npt.NDArray[Any]] = field(default_factory=dict)

    def tensor_bytes(self) -> bytes:
        """Return the tensors as safetensors."""
        return save(self.tensors)

    @property
    def digest(self) -> bytes:
        """BLAKE3 over form and tensors, 32 bytes. Computed at each call."""
        hashed = blake3.blake3(msgpack.packb(self.form, use_bin_type=True), derive_key_context="refold 2026 packed tree")
        for name, tensor in self.tensors.items():
            hashed.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
            hashed.update(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)
        return hashed.digest()


def pack(value: Any, name: str) -> Packed:
    """Take a tree apart.

    Parameters
    ----------
    name
        What the tree is called in an error.

    Raises
    ------
    UsageError
        It holds something that is neither number, text, array, tensor nor a collection of these; names where.
    """
    packed = Packed()
    packed.form = _pack(value, name, packed, 0)
    return packed


def _pack(value: Any, name: str, packed: Packed, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise UsageError(f"{name} is nested more than {MAX_DEPTH} deep, or holds itself")
    if isinstance(value, bool) or value is None or type(value) in (float, str, bytes):
        return value
    if type(value) is int:
        return value if value in _INT64 else ["i", str(value)]
    if isinstance(value, Mapping):
        kind = "c" if isinstance(value, Counter) else "m"
        pairs = [(_key(key, name), _pack(item, f"{name}.{key}", packed, depth + 1)) for key, item in value.items()]
        return [kind, [part for pair in pairs for part in pair]]
    if type(value) in (list, tuple, deque):
        letter = "t" if isinstance(value, tuple) else "l"
        return [letter, [_pack(item, f"{name}[{place}]", packed, depth + 1) for place, item in enumerate(value)]]
    return _pack_tensor(value, name, packed)


def _key(key: Any, name: str) -> Any:
    if type(key) in (str, bytes, float) or (type(key) is int and key in _INT64):
        return key
    raise UsageError(f"{name} has the key {key!r}, a {type(key).__name__}", hint="keys are texts or numbers")


def _pack_tensor(value: Any, name: str, packed: Packed) -> Any:
    is_torch = hasattr(value, "detach") and hasattr(value, "untyped_storage")
    if not is_torch and not isinstance(value, np.ndarray | np.generic):
        hint = "a checkpoint keeps numbers, texts, arrays, tensors and collections of these; make it again when you start"
        raise UsageError(f"{name} is a {type(value).__name__}, which is not kept", hint=hint)
    dtype = str(value.dtype).removeprefix("torch.") if is_torch else value.dtype.name
    if dtype not in (*_DTYPES, *_AS_BITS):
        raise UsageError(f"{name} has dtype {dtype}, which is not kept", hint=f"one of {', '.join((*_DTYPES, *_AS_BITS))}")
    number = str(len(packed.tensors))
    packed.tensors[number] = np.ascontiguousarray(bits_of(value)) if value.shape else np.array(bits_of(value))
    return ["T" if is_torch else "A" if isinstance(value, np.ndarray) else "N", number, dtype]


def bits_of(value: Any) -> npt.NDArray[Any]:
    """Return an array or a torch tensor as an array; dtypes that NumPy lacks as integers of the same bits."""
    if not hasattr(value, "untyped_storage"):
        array = np.asarray(value)
        return array.astype(array.dtype.newbyteorder("="), copy=False)
    held = value.detach().cpu()
    dtype = str(held.dtype).removeprefix("torch.")
    if dtype in _AS_BITS:
        import torch

        held = held.contiguous().view(getattr(torch, _AS_BITS[dtype]))
    return np.asarray(held.numpy())


def unpack(form: Any, tensors: bytes) -> Any:
    """Put a tree together again. Tensors become torch's where they were, NumPy's where torch is not installed.

    Raises
    ------
    InvalidRecord
        ``form``: these are no tree's parts.
    """
    try:
        return _Unpacking(load(tensors)).value(form, 0)
    except (SafetensorError, ValueError, TypeError, KeyError, IndexError, RecursionError, OverflowError) as error:
        raise InvalidRecord("form", f"not what a training program remembered: {error}") from error


@dataclass(slots=True)
class _Unpacking:
    tensors: dict[str, npt.NDArray[Any]]
    nodes: int = 0

    def value(self, form: Any, depth: int) -> Any:
        self.nodes += 1
        if depth > MAX_DEPTH or self.nodes > MAX_NODES:
            raise ValueError("too large or too deep")
        if form is None or type(form) in _PLAIN:
            return form
        letter, inside, *dtype = form
        if letter == "i":
            return int(inside) if len(inside) <= 400 else self._refuse(letter)
        if letter in ("l", "t"):
            found = [self.value(item, depth + 1) for item in inside]
            return found if letter == "l" else tuple(found)
        if letter in ("m", "c"):
            values = [self.value(item, depth + 1) for item in inside[1::2]]
            pairs = dict(zip(inside[::2], values, strict=True))
            return Counter(pairs) if letter == "c" else pairs
        if letter in ("T", "A", "N"):
            return tensor_of(self.tensors[inside], *dtype, as_torch=letter == "T", scalar=letter == "N")
        return self._refuse(letter)

    def _refuse(self, letter: object) -> Any:
        raise ValueError(f"no such part: {letter!r}")


def tensor_of(bits: npt.NDArray[Any], dtype: str, *, as_torch: bool, scalar: bool = False) -> Any:
    """Return what `bits_of` was given.

    Raises
    ------
    ValueError
        No such dtype, or it needs torch, which is not installed.
    """
    if dtype != bits.dtype.name and _AS_BITS.get(dtype) != bits.dtype.name:
        raise ValueError(f"{bits.dtype.name} cannot be {dtype}")
    if not as_torch:
        return bits[()] if scalar else bits
    try:
        import torch
    except ImportError as error:
        raise ValueError("it holds torch's tensors, and torch is not installed") from error
    found = torch.from_numpy(bits)
    return found.view(getattr(torch, dtype)) if dtype in _AS_BITS else found
