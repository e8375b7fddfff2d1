"""Sealing at the client: to which key, as `rounds` says, and whether there is one."""

from __future__ import annotations

from dataclasses import dataclass, replace

from refold.producers.coding import Coded
from refold.producers.lineage import KeyEvent
from refold.schemas.events import ClientKeyed
from refold.schemas.payload import CHUNK_BYTES
from refold.schemas.sealing import ROOM_BYTES, SUITE, chunk_info, seal, sealing_key_id
from refold.schemas.updates import Sealing


@dataclass(frozen=True, slots=True)
class Place:
    """What names an update before there is one."""

    client: str
    session_index: int
    session_nonce: bytes
    sequence: int


class Sealer:
    """Seals one client's updates to its newest key. A client that was ever given a key never sends a plain update again.

    Parameters
    ----------
    required
        Take no part without a key.
    """

    def __init__(self, federation: str, client: str, *, required: bool) -> None:
        self._federation = federation
        self._client = client
        self._public: bytes | None = None
        self._is_void = False
        self.required = required

    def take(self, event: KeyEvent) -> None:
        """Hear of a key in `rounds`."""
        if event.client == self._client:
            self._is_void = not isinstance(event, ClientKeyed)
            self._public = event.public_key if isinstance(event, ClientKeyed) else self._public

    @property
    def has_key(self) -> bool:
        """Whether this client was given a key, void now or not."""
        return self._public is not None

    @property
    def obstacle(self) -> str:
        """Why this client cannot take part in training, or ""."""
        if self._is_void:
            return "erased; no sealing key"
        return "no sealing key" if self.required and not self.has_key else ""

    @property
    def room_bytes(self) -> int:
        """The largest chunk that may be coded."""
        return ROOM_BYTES if self.has_key else CHUNK_BYTES

    def seal(self, coded: Coded, session: tuple[int, bytes], sequence: int) -> Coded:
        """Return an update's chunks sealed for its place in a session; as they are where this client has no key.

        A key that is void meanwhile is used all the same: nobody can open the update, and it is refused, which is better than
        to send it in the clear.
        """
        if self._public is None:
            return coded
        place = Place(self._client, *session, sequence)
        infos = (chunk_info(self._federation, place, index) for index in range(len(coded.chunks)))
        chunks = tuple(seal(self._public, chunk, info) for chunk, info in zip(coded.chunks, infos, strict=True))
        return replace(coded, chunks=chunks, sealing=Sealing(SUITE, sealing_key_id(self._public)))
