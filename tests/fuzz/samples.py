"""Small federations and valid bytes of every kind: what all other inputs are made from."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import refold
from refold.bus.memory import MemoryBus
from refold.consumers.inspection import Inspector
from refold.federation import Federation
from refold.producers.outbox import Parcel
from refold.schemas.chunks import FLOATS, PLANES, RAW, SPARSE
from refold.schemas.codec import encode_floats, encode_integers, encode_raw
from refold.schemas.keys import SigningKey
from refold.schemas.layout import Integers, Layout
from refold.schemas.topk import Entries, encode_sparse
from refold.testing import SteppedServer, craft_update
from tests.fuzz.decoder import Input

KEY = SigningKey(Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
CLIENT = "ann"
MODEL = {"w": np.zeros((40, 30), "f4"), "b": np.zeros(7, "f4"), "n": np.zeros(3, "i8"), "flag": np.array(False)}
TOPK = "topk"


@cache
def federation(codec: str = "grid") -> Federation:
    """Return a federation in memory whose plan asks for this codec."""
    keys = Path(tempfile.mkdtemp(prefix="refold-fuzz-"))
    density = 0.2 if codec == TOPK else None
    plan = refold.Plan(codec=codec, density=density, heartbeat_s=1.0)
    made = refold.create(f"memory:fuzz-{codec}", MODEL, plan=plan, keys=keys, partitions=1, bus=MemoryBus())
    made.enroll(CLIENT, KEY.public)
    with SteppedServer(made) as server:
        server.settle()
    return made


@cache
def inspector(codec: str = "grid") -> Inspector:
    """Return the inspector of that federation's updates."""
    made = federation(codec)
    return Inspector.of(made.genesis, made.keyring.secret())


@cache
def layout() -> Layout:
    """Return the model's blocks."""
    return Layout.of(federation().genesis.schema)


def arrays(seed: int, spread: float) -> list[Integers]:
    """Return integers for each tensor, floats' normal with this spread."""
    rng = np.random.default_rng(seed)
    floats = [np.rint(rng.standard_t(3, size) * spread).clip(-(2**27), 2**27) for size in layout().sizes]
    widths = layout().widths
    return [f.astype(np.int32) if w == 32 else np.ones(len(f), np.int64) for f, w in zip(floats, widths, strict=True)]


def sparse(seed: int) -> list[Entries | Integers]:
    """Return a few entries of each float tensor."""
    found: list[Entries | Integers] = []
    for array in arrays(seed, 90.0):
        if array.dtype != np.int32:
            found.append(array)
            continue
        places = np.flatnonzero(array)[:: 7 + seed]
        found.append(Entries(places, array[places].astype(np.int32)))
    return found


@cache
def chunks(form: int) -> tuple[Input, ...]:
    """Return valid payloads of a form, whole and cut."""
    spreads = enumerate((0.3, 40.0, 90_000.0))
    return tuple(_encoded(form, seed, spread, most) for seed, spread in spreads for most in (1_000_000, 900))


def _encoded(form: int, seed: int, spread: float, most: int) -> Input:
    whole = arrays(seed, spread)
    match form:
        case _ if form == PLANES:
            return tuple(encode_integers(whole, layout(), max_chunk_bytes=most))
        case _ if form == RAW:
            return tuple(encode_raw(whole, layout(), max_chunk_bytes=most))
        case _ if form == FLOATS:
            floats = [(array / 65_536).astype(np.float32) if array.dtype == np.int32 else array for array in whole]
            return tuple(encode_floats(floats, layout(), max_chunk_bytes=most))
    assert form == SPARSE
    return tuple(encode_sparse(sparse(seed), layout(), max_chunk_bytes=most))


def update_input(parcel: Parcel) -> Input:
    """Return a manifest and its chunks."""
    return (parcel.manifest, *parcel.chunks)


@cache
def updates(codec: str) -> tuple[Input, ...]:
    """Return signed updates of every kind and codec that a federation takes."""
    made = federation(codec)
    forms = {TOPK: SPARSE} if codec == TOPK else {"grid": PLANES, "exact": PLANES, "float32": FLOATS}
    found = [
        craft_update(made, CLIENT, KEY, chunks=parts, inline=inline, codec=name, session=(1, bytes(8)))
        for name, form in forms.items()
        for parts in chunks(form)
        for inline in (True, False)
    ]
    nothing: dict[str, Any] = {"payload": None, "num_examples": 0, "raw_bytes": 0, "session": (1, bytes(8))}
    nothing |= {"metrics": (("accuracy", 0.5),), "note": "a word"}
    found += [craft_update(made, CLIENT, KEY, kind=kind, **nothing) for kind in ("evaluate", "decline", "pass")]
    return tuple(map(update_input, found))


@cache
def features() -> bytes:
    """Return the packed features of an update."""
    update = inspector().open(updates("grid")[0][0])
    return inspector().examine(update.body, chunks(PLANES)[0]).pack()
