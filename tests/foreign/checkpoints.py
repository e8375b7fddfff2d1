"""Section 6 of docs/WIRE.md: what a reader of `rounds` checks of the server's signed word."""

from __future__ import annotations

import hashlib

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from foreign.records import RefusedError, Value, derived, encode, key_id


class Checkpoints:
    """Follows the checkpoints of a federation; the newest one is worth keeping."""

    def __init__(self, federation: str, log_keys: list[bytes]) -> None:
        self._federation = federation
        self._keys = {key_id(key): key for key in log_keys}
        self.newest: Value | None = None

    def take(self, commit: Value, event: Value) -> None:
        """Check the checkpoint that a commit of `rounds` carries."""
        said, position = event["signed"]["checkpoint"], commit["position"]
        before = self.newest["events"] if self.newest else 0
        holds = (
            said["federation"] == self._federation
            and (said["events"], said["head"]) == (position["accepted_index"], position["accepted_hash"])
            and (said["rounds_index"], said["rounds_head"]) == (commit["first_index"], commit["previous"])
            and said["events"] > before == event["previous_events"]
            and (extends(self.newest, said, event["consistency"]) if self.newest else not event["consistency"])
        )
        if not holds:
            raise RefusedError("checkpoint")
        self._check_signature(said, event["signed"])
        self.newest = said

    def _check_signature(self, said: Value, signed: Value) -> None:
        message = b"refold 2026 checkpoint\0" + derived("checkpoint", encode("Checkpoint", said))
        try:
            Ed25519PublicKey.from_public_bytes(self._keys[signed["key_id"]]).verify(signed["signature"], message)
        except (KeyError, InvalidSignature) as error:
            raise RefusedError("checkpoint") from error


def extends(old: Value, new: Value, path: list[bytes]) -> bool:
    """Whether the path shows that one tree extends the other: the recursion of RFC 6962, section 2.1.2, read backwards."""
    rest = list(path)

    def walk(below: int, size: int, *, whole: bool) -> tuple[bytes, bytes]:
        if below == size:
            node = old["root"] if whole else rest.pop(0)
            return node, node
        left = 1 << (size - 1).bit_length() - 1
        if below <= left:
            before, after = walk(below, left, whole=whole)
            return before, _node(after, rest.pop(0))
        before, after = walk(below - left, size - left, whole=False)
        common = rest.pop(0)
        return _node(common, before), _node(common, after)

    try:
        found = walk(old["events"], new["events"], whole=True)
    except IndexError:
        return False
    return not rest and found == (old["root"], new["root"])


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\1" + left + right).digest()
