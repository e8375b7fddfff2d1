"""What every run has in common: keys, and the ways in which time, threads and random numbers come from outside."""

from __future__ import annotations

import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import refold.bus.ledger
import refold.consumers.merging
import refold.consumers.server
import refold.producers.client
import refold.producers.heartbeat
from refold.bus.clock import SystemClock
from refold.bus.payloads import send_payload
from refold.keyring import Keyring
from refold.producers.measuring import Meter
from refold.schemas import canonical, codec, keys, payload
from refold.schemas.keys import SigningKey
from refold.state.step import Step
from tests.simulation.threads import Threading

if TYPE_CHECKING:
    from tests.simulation.world import World

IDLE_S = 1.0
"""How long a member waits for news: a step of the clock, no time of anybody's."""


class Kit:
    """Keys that are the same in every run, and folders that are new in each.

    Parameters
    ----------
    folder
        Of this process alone.
    """

    def __init__(self, folder: Path) -> None:
        self.keys = folder / "keys"
        self._disks = folder / "disks"
        self._keys: dict[str, SigningKey] = {}
        # Made before any run, so that what they are does not depend on which run is the first.
        kit = random.Random("kit")
        with ExitStack() as stack:
            _patch(stack, os, "urandom", kit.randbytes)
            _patch(stack, SigningKey, "generate", staticmethod(lambda: key_of(kit.randbytes(32))))
            Keyring(self.keys).create()

    def key(self, name: str) -> SigningKey:
        """Return a client's key."""
        if name not in self._keys:
            self._keys[name] = key_of(blake3.blake3(name.encode()).digest())
        return self._keys[name]

    def folder_for(self, name: str) -> Path:
        """Return an empty folder."""
        folder = self._disks / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder


def key_of(seed: bytes) -> SigningKey:
    """Return the key that 32 bytes stand for."""
    return SigningKey(Ed25519PrivateKey.from_private_bytes(seed))


@contextmanager
def simulated(world: World) -> Iterator[None]:
    """Let Refold take time, threads and random numbers from a world while this lasts."""
    scenario, clock = world.scenario, world.scheduler.clock
    entropy = random.Random(f"entropy {scenario.seed}")
    threads = Threading(world.scheduler)
    with ExitStack() as stack:
        _patch(stack, os, "urandom", entropy.randbytes)
        _patch(stack, SigningKey, "generate", staticmethod(lambda: key_of(entropy.randbytes(32))))
        _patch(stack, SystemClock, "monotonic_s", lambda _: clock.monotonic_s())
        _patch(stack, SystemClock, "wall_ms", lambda _: clock.wall_ms())
        _patch(stack, refold.consumers.server, "threading", threads)
        _patch(stack, refold.consumers.merging, "ROUNDS_A_TURN", 2)
        _patch(stack, refold.producers.heartbeat, "threading", threads)
        _patch(stack, refold.producers.client, "threading", threads)
        _patch(stack, Meter, "measure", lambda _: ())
        _patch(stack, refold.consumers.server, "STEP_S", IDLE_S)
        _patch(stack, refold.producers.client, "POLL_S", IDLE_S)
        _patch_everywhere(stack, "decode", canonical.decode)
        _patch_everywhere(stack, "verify", keys.verify)
        if scenario.small_commits:
            _patch(stack, refold.bus.ledger, "MAX_INLINE_EVENTS_BYTES", 300)
        if scenario.is_chunked:
            for function in (payload.describe, send_payload):
                _patch_default(stack, function, "inline_bytes", -1)
            for function in (codec.encode_integers, codec.encode_floats, codec.encode_raw, Step.encode, Step.encode_slots):
                _patch_default(stack, function, "max_chunk_bytes", 48)
        yield


def _patch_everywhere(stack: ExitStack, name: str, function: Callable[..., Any]) -> None:
    """Let every module that imported this function by its name compute the same only once: a dozen readers read each record.

    What it returns cannot be changed, and depends on its arguments alone.
    """
    known: dict[tuple[Any, ...], Any] = {}

    def remembered(*arguments: Any) -> Any:
        if arguments not in known:
            known[arguments] = function(*arguments)
        return known[arguments]

    for module in [module for key, module in sys.modules.items() if key.startswith(("refold.", "tests.checker"))]:
        if module.__dict__.get(name) is function:
            _patch(stack, module, name, remembered)


def _patch(stack: ExitStack, owner: Any, name: str, value: object) -> None:
    old = owner.__dict__[name]
    setattr(owner, name, value)
    stack.callback(setattr, owner, name, old)


def _patch_default(stack: ExitStack, function: Callable[..., Any], name: str, value: object) -> None:
    defaults: Mapping[str, Any] = function.__kwdefaults__ or {}
    function.__kwdefaults__ = {**defaults, name: value}
    stack.callback(setattr, function, "__kwdefaults__", dict(defaults))
