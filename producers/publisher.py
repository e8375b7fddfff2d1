"""Sending updates: chunks, then the manifest that commits them."""

from __future__ import annotations

from refold.bus.clock import Clock
from refold.bus.contract import Bus, partition_for
from refold.bus.topics import Topics, chunk_headers, event_headers, hint_header
from refold.producers.outbox import Outbox, Parcel
from refold.schemas.canonical import decode, encode
from refold.schemas.errors import BusError, TryAgainError
from refold.schemas.keys import UPDATE_TAG, SigningKey
from refold.schemas.updates import ClientUpdate, UpdateBody, update_digest


class Publisher:
    """Sends one client's updates, each the same bytes however often it is sent.

    Durable steps:

    1. The update is signed and kept in the outbox. A crash after this: the next start sends it.
    2. Its chunks are acknowledged. A crash after this: they are sent again; the first ones are garbage that no manifest names,
       or serve just as well, since digests are the reference.
    3. Its manifest is acknowledged. A crash after this: it may be sent again, and is recognised as a duplicate.
    4. Its receipt drops it from the outbox.
    """

    def __init__(self, bus: Bus, topics: Topics, client: str, key: SigningKey, outbox: Outbox, clock: Clock) -> None:
        self._bus = bus
        self._topics = topics
        self._client = client.encode()
        self._key = key
        self._outbox = outbox
        self._clock = clock
        self._producer = bus.producer()
        self._partition = partition_for(self._client, bus.topics()[topics.updates].partitions)

    def sign(self, body: UpdateBody, chunks: tuple[bytes, ...]) -> Parcel:
        """Sign an update; return what is to be kept and sent."""
        digest = update_digest(body)
        manifest = encode(ClientUpdate(body, self._key.sign(UPDATE_TAG, digest)))
        return Parcel(digest, manifest, chunks)

    def keep(self, parcel: Parcel) -> None:
        """Keep an update in the outbox.

        Raises
        ------
        StorageFullError
            There is no room; nothing was kept.
        """
        # 1. The outbox.
        self._outbox.put(parcel)

    @property
    def partition(self) -> int:
        """Where all of this client's updates go."""
        return self._partition

    def send(self, parcel: Parcel) -> int:
        """Send an update's chunks and manifest, wait for their acknowledgement, and return the manifest's offset.

        Raises
        ------
        BusError, TryAgainError
            It is not known to be there. It stays in the outbox; send it again.
        """
        try:
            # 2. Chunks.
            headers = chunk_headers()
            sent = [
                self._producer.send(self._topics.updates, chunk, key=self._client, partition=self._partition, headers=headers)
                for chunk in parcel.chunks
            ]
            self._producer.flush()
            offsets = [delivery.result(0.0) for delivery in sent]
            # 3. The manifest.
            return self._send_manifest(parcel, offsets)
        except (BusError, TryAgainError):
            # What is still queued there would be written beside the retry.
            self._producer = self._bus.producer()
            raise

    def _send_manifest(self, parcel: Parcel, offsets: list[int]) -> int:
        headers = event_headers(
            "ClientUpdate",
            source=self._topics.updates,
            subject=self._client.decode(),
            identity=parcel.digest.hex(),
            time_ms=self._clock.wall_ms(),
        )
        if offsets:
            headers += (hint_header(min(offsets), max(offsets)),)
        topic = self._topics.updates
        sent = self._producer.send(topic, parcel.manifest, key=self._client, partition=self._partition, headers=headers)
        self._producer.flush()
        return sent.result(0.0)

    def close(self) -> None:
        """Let go of the producer."""
        self._producer.close()


def send_waiting(bus: Bus, topics: Topics, client: str, key: SigningKey, outbox: Outbox, clock: Clock) -> int:
    """Send what an outbox holds of a client of this federation, without a session; return how many updates that were.

    Raises
    ------
    BusError, TryAgainError
        Not all of it is known to be there; send it again.
    """
    publisher = Publisher(bus, topics, client, key, outbox, clock)
    sent = 0
    try:
        for parcel in outbox.waiting():
            said = decode(parcel.manifest, ClientUpdate).body
            if (said.federation, said.client) == (topics.federation, client):
                publisher.send(parcel)
                sent += 1
    finally:
        publisher.close()
    return sent
