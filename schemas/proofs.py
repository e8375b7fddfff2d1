"""Proofs that stand by themselves: a signed checkpoint, and the path that leads to its root (RFC 6962).

Whoever has one needs no log and no bus to check it, only the federation's log key or a checkpoint that they kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from refold.schemas.canonical import MAX_RECORD_BYTES
from refold.schemas.errors import IntegrityError, InvalidRecord
from refold.schemas.kept import Kept
from refold.schemas.merkle import MAX_PATH, leaf_hash, verify_consistency, verify_inclusion

INCLUSION, CONSISTENCY = "inclusion", "consistency"


@dataclass(frozen=True, slots=True)
class InclusionProof:
    """That an event is in the log that was signed.

    Parameters
    ----------
    event
        The event's bytes as they were written.
    """

    index: int
    event: bytes
    path: tuple[bytes, ...]
    kept: Kept

    @property
    def checkpoints(self) -> tuple[Kept, ...]:
        """The checkpoint that it rests on."""
        return (self.kept,)

    @property
    def holds(self) -> bool:
        """Whether the path leads from the event to the root."""
        said = self.kept.checkpoint
        return verify_inclusion(leaf_hash(self.event), self.index, said.events, self.path, said.root)

    def to_json(self) -> dict[str, Any]:
        """Return what `json.dumps` takes."""
        return {
            "kind": INCLUSION,
            "index": self.index,
            "event": self.event.hex(),
            "path": [node.hex() for node in self.path],
            "checkpoint": self.kept.to_json(),
        }


@dataclass(frozen=True, slots=True)
class ConsistencyProof:
    """That the log of one checkpoint begins with the log of another."""

    old: Kept
    new: Kept
    path: tuple[bytes, ...]

    @property
    def checkpoints(self) -> tuple[Kept, ...]:
        """The checkpoints that it rests on."""
        return (self.old, self.new)

    @property
    def holds(self) -> bool:
        """Whether the newer tree extends the older one, and both are one server's word."""
        one, other = self.old.checkpoint, self.new.checkpoint
        same = one.agrees(other) and self.old.log_key == self.new.log_key
        return same and verify_consistency(one.events, other.events, one.root, other.root, self.path)

    def to_json(self) -> dict[str, Any]:
        """Return what `json.dumps` takes."""
        path = [node.hex() for node in self.path]
        return {"kind": CONSISTENCY, "old": self.old.to_json(), "new": self.new.to_json(), "path": path}


Proof = InclusionProof | ConsistencyProof


def proof_from_json(value: Any) -> Proof:
    """Take a proof out of JSON; the checkpoints' signatures hold by the keys beside them, nothing else is checked yet.

    Raises
    ------
    InvalidRecord
        It is none, or was changed.
    """
    kind = value.get("kind") if isinstance(value, dict) else None
    wanted = {INCLUSION: ["checkpoint", "event", "index", "kind", "path"], CONSISTENCY: ["kind", "new", "old", "path"]}
    if not isinstance(kind, str) or kind not in wanted or sorted(value) != wanted[kind]:
        raise InvalidRecord("form", "its fields are not those of one")
    path = _path(value["path"])
    if kind == CONSISTENCY:
        return ConsistencyProof(Kept.from_json(value["old"]), Kept.from_json(value["new"]), path)
    if type(value["index"]) is not int:
        raise InvalidRecord("form", "the index is no integer")
    return InclusionProof(value["index"], _hex(value["event"], MAX_RECORD_BYTES), path, Kept.from_json(value["checkpoint"]))


def require_proof(proof: Proof, *, log_keys: Sequence[bytes] = (), known: Iterable[Kept] = ()) -> None:
    """Refuse a proof that does not hold, or not for this reader.

    Parameters
    ----------
    log_keys
        Keys that the reader believes; if empty, the key that the proof brings.
    known
        Checkpoints that the reader kept: the proof must be the same server's word, and not contradict them.

    Raises
    ------
    IntegrityError
    """
    for kept in proof.checkpoints:
        if log_keys and kept.log_key not in log_keys:
            raise IntegrityError("the proof is signed by another key than the one given", key=kept.log_key.hex())
        for other in known:
            if other.log_key != kept.log_key or other.checkpoint.federation != kept.checkpoint.federation:
                raise IntegrityError("the proof is not of the federation and key of the checkpoint that you kept")
            if not other.checkpoint.agrees(kept.checkpoint):
                raise IntegrityError(
                    f"the proof's checkpoint of {kept.events} events contradicts the one of {other.events} that you kept",
                    hint="both are signed by one key: keep both, they prove that the server showed two logs",
                )
    if not proof.holds:
        raise IntegrityError("the proof does not hold: its path does not lead to the signed root")


def _path(value: Any) -> tuple[bytes, ...]:
    if not isinstance(value, list) or len(value) > MAX_PATH:
        raise InvalidRecord("form", f"a path is a list of at most {MAX_PATH} hashes")
    return tuple(_hex(node, 32) for node in value)


def _hex(value: Any, most_bytes: int) -> bytes:
    if not isinstance(value, str) or len(value) > 2 * most_bytes:
        raise InvalidRecord("form", "not hexadecimal digits within bounds")
    try:
        return bytes.fromhex(value)
    except ValueError as error:
        raise InvalidRecord("form", "not hexadecimal digits") from error
