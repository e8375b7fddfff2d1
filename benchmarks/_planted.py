"""Lines of failures to plant in a log: what other programs say, none of them written for this.

The kinds are taken from catalogues that ship with them (libc's errors and signals, Kafka's protocol, HTTP, OpenSSL's checks of
certificates), and from exceptions that Python, numpy and SQLite really raise when they are made to fail. Each kind belongs
either to those that thresholds and words may be tuned on, or, three of four times, to those held out.
"""

from __future__ import annotations

import errno
import http
import inspect
import json
import os
import random
import signal
import socket
import sqlite3
import ssl
import struct
import subprocess
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import blake3
import kafka.errors
import numpy as np

TUNED_SHARE = 4
"""One kind in so many may be looked at while tuning."""

SHAPES = {"error": 0.45, "warning": 0.25, "bare": 0.2, "info": 0.1}
"""How a planted line looks: of a level, in the log's own form, or the bare words of a program that has no such form."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of failure."""

    source: str
    text: str

    @property
    def is_held_out(self) -> bool:
        """Whether nothing was tuned on it."""
        return blake3.blake3(f"{self.source} {self.text}".encode()).digest()[0] % TUNED_SHARE != 0


def kinds() -> list[Kind]:
    """Return all kinds, those of the same words once."""
    found = [Kind(source, text) for source, text in _catalogue()]
    return list({kind.text: kind for kind in found}.values())


def _catalogue() -> Iterator[tuple[str, str]]:
    for number, name in sorted(errno.errorcode.items()):
        yield "libc", f"{os.strerror(number)} ({name})" if number % 2 else str(OSError(number, os.strerror(number), "/data/x"))
    for each in sorted(signal.Signals):
        if each in DEADLY:
            yield "signal", f"process 4711 ended: {signal.strsignal(each)}"
    for name, kind in sorted(vars(kafka.errors).items()):
        if inspect.isclass(kind) and issubclass(kind, kafka.errors.BrokerResponseError) and getattr(kind, "description", ""):
            yield "kafka", f"{name}: {' '.join(kind.description.split())}"
    for status in http.HTTPStatus:
        if status >= 400:
            yield "http", f"POST /v1/upload answered {status.value} {status.phrase}: {status.description}"
    for number in CERTIFICATE_FAULTS:
        yield "openssl", str(ssl.SSLCertVerificationError(number, f"certificate verify failed: {CERTIFICATE_FAULTS[number]}"))
    for fail in FAILURES:
        yield "python", raised(fail)


DEADLY = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGKILL, signal.SIGXCPU)
CERTIFICATE_FAULTS = {
    10: "certificate has expired",
    18: "self-signed certificate",
    20: "unable to get local issuer certificate",
    23: "certificate revoked",
    62: "Hostname mismatch, certificate is not valid for 'broker'.",
}

FAILURES: tuple[Callable[[], object], ...] = (
    lambda: 1 // 0,
    lambda: {}["weight"],
    lambda: [][3],
    lambda: int("x7"),
    lambda: None.step(),  # type: ignore[attr-defined]
    lambda: open("/no/such/file"),  # noqa: SIM115
    lambda: os.mkdir("/proc/x"),
    lambda: b"\xff".decode(),
    lambda: json.loads('{"a": '),
    lambda: struct.unpack("<q", b"abc"),
    lambda: zlib.decompress(b"not compressed"),
    lambda: __import__("no_such_module"),
    lambda: np.zeros((3, 4)) @ np.zeros((3, 4)),
    lambda: np.zeros(3).reshape(2, 2),
    lambda: np.concatenate([np.zeros((2, 2)), np.zeros((3, 3))]),
    lambda: np.linalg.inv(np.zeros((2, 2))),
    lambda: np.array([1, 2])[5],
    lambda: np.load("/no/such.npy"),
    lambda: np.zeros(1 << 50),
    lambda: sqlite3.connect("/no/such/folder/x.db"),
    lambda: sqlite3.connect(":memory:").execute("select * from missing"),
    lambda: sqlite3.connect(":memory:").execute("selec 1"),
    lambda: socket.create_connection(("127.0.0.1", 9), timeout=2),
    lambda: socket.getaddrinfo("no-such-host.invalid", 80),
    lambda: subprocess.run(["/no/such/program"], check=False),
    lambda: subprocess.run(["false"], check=True),
    lambda: Path("/etc/hostname/x").read_text(),
    lambda: ssl.create_default_context(cafile="/etc/hostname"),
    lambda: _recurse(0),
    lambda: next(iter(())),
)


def _recurse(depth: int) -> int:
    return _recurse(depth + 1) + 1


def raised(fail: Callable[[], object]) -> str:
    """Return the last line of the traceback that a failure really leaves."""
    try:
        fail()
    except BaseException as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]
    raise AssertionError("it did not fail")


def shaped(kind: Kind, rng: random.Random, stamp: str, loggers: list[str]) -> tuple[str, str]:
    """Return the shape drawn, and the line that a program would write of this kind."""
    shape = rng.choices(list(SHAPES), list(SHAPES.values()))[0]
    if shape == "bare":
        return shape, kind.text
    level = {"error": "ERROR", "warning": "WARN", "info": "INFO"}[shape]
    return shape, f"{stamp} {level} {kind.text} ({rng.choice(loggers)})"
