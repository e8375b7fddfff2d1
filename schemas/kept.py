"""A signed checkpoint as people and programs keep it: one line of JSON, with the key that signed it.

::

    {"federation": "hospital", "events": 17, "root": "…", "head": "…", "rounds_index": 9, "rounds_head": "…",
     "time_ms": 1767225600000, "log_key": "…", "signature": "…"}

Bytes are hexadecimal. A file holds one for each line, in any order. The key is there to check a line by itself; whether it is
the federation's is for the reader to know.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refold.schemas.canonical import encode
from refold.schemas.checkpoints import Checkpoint, SignedCheckpoint
from refold.schemas.errors import ConfigurationError, InvalidRecord, NotFoundError
from refold.schemas.keys import key_id

MAX_FILE_BYTES = 64 << 20
FIELDS = ("federation", "events", "root", "head", "rounds_index", "rounds_head", "time_ms", "log_key", "signature")


@dataclass(frozen=True, slots=True)
class Kept:
    """A checkpoint whose signature holds by the public key beside it."""

    signed: SignedCheckpoint
    log_key: bytes

    @property
    def checkpoint(self) -> Checkpoint:
        """What was signed."""
        return self.signed.checkpoint

    @property
    def events(self) -> int:
        """How many events it covers."""
        return self.signed.checkpoint.events

    def to_json(self) -> dict[str, Any]:
        """Return what `json.dumps` takes."""
        said = self.signed.checkpoint
        return {
            "federation": said.federation,
            "events": said.events,
            "root": said.root.hex(),
            "head": said.head.hex(),
            "rounds_index": said.rounds_index,
            "rounds_head": said.rounds_head.hex(),
            "time_ms": said.time_ms,
            "log_key": self.log_key.hex(),
            "signature": self.signed.signature.hex(),
        }

    @classmethod
    def from_json(cls, value: Any) -> Kept:
        """Take it out of JSON.

        Raises
        ------
        InvalidRecord
            ``form``: a field is missing or not what it should be; ``signature``: it does not hold by the key beside it.
        """
        if not isinstance(value, dict) or sorted(value) != sorted(FIELDS):
            raise InvalidRecord("form", "not a signed checkpoint")
        try:
            root, head, rounds_head, log_key, signature = (
                bytes.fromhex(value[name]) for name in ("root", "head", "rounds_head", "log_key", "signature")
            )
        except (TypeError, ValueError) as error:
            raise InvalidRecord("form", f"not a signed checkpoint: {error}") from error
        said = Checkpoint(
            value["federation"], value["events"], root, head, value["rounds_index"], rounds_head, value["time_ms"]
        )
        encode(said)
        kept = cls(SignedCheckpoint(said, key_id(log_key), signature), log_key)
        if not kept.signed.is_signed_by([log_key]):
            raise InvalidRecord("signature", f"the signature of the checkpoint of {said.events} events does not hold")
        return kept


def to_lines(kept: Iterable[Kept]) -> str:
    """Return checkpoints as a file's text."""
    return "".join(json.dumps(one.to_json(), ensure_ascii=False) + "\n" for one in kept)


def from_lines(text: str) -> list[Kept]:
    """Return the checkpoints of a file's text, by number of events.

    Raises
    ------
    InvalidRecord
        A line is none, or was changed.
    """
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            found.append(Kept.from_json(json.loads(line)))
        except (ValueError, RecursionError) as error:  # Of numbers with thousands of digits, too.
            raise InvalidRecord("form", f"line {number} is no JSON") from error
        except InvalidRecord as error:
            raise InvalidRecord(error.reason, f"line {number}: {error.message}") from error
    return sorted(found, key=lambda kept: kept.events)


def read_kept(path: str | Path) -> list[Kept]:
    """Return the checkpoints in a file.

    Raises
    ------
    NotFoundError, ConfigurationError
        There is no such file, or it holds something else, or what it holds was changed.
    """
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError as error:
        raise NotFoundError("no such file", path=path) from error
    try:
        if len(data) > MAX_FILE_BYTES:
            raise InvalidRecord("too-large", f"more than {MAX_FILE_BYTES:,} bytes")
        return from_lines(data.decode())
    except (InvalidRecord, UnicodeDecodeError) as error:
        what = error.message if isinstance(error, InvalidRecord) else "no text"
        raise ConfigurationError(f"no signed checkpoints: {what}", path=path, hint="`refold checkpoint` writes them") from error
