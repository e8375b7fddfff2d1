"""How a client gets a key enrolled by itself: by a one-time token, or by its present key, which the new one replaces.

Durable steps: 1. the new key is on the client's disk (the caller's doing); 2. the request is acknowledged in `updates`; 3. the
notice in `rounds` is there. A crash after 1 or 2: the same call makes the same request, byte for byte, and finds the notice or
waits for it. A request that is refused has no notice: the client sees that detection has passed it.
"""

from __future__ import annotations

import base64
import binascii

import blake3

from refold.bus.clock import Clock
from refold.bus.contract import Bus, partition_for
from refold.bus.topics import Topics, event_headers
from refold.producers.lineage import LineageReader
from refold.schemas.canonical import decode, encode
from refold.schemas.errors import InvalidRecord, RefoldError, TryAgainError, UsageError
from refold.schemas.identity import ClientNotice, EnrolmentToken, KeyRequest, KeyRequestBody, key_request_digest
from refold.schemas.keys import POSSESSION_TAG, REQUEST_TAG, SigningKey

TOKEN_PREFIX = "refold-token-"
CHECK_BYTES = 4
POLL_S = 0.25


def token_text(token: EnrolmentToken) -> str:
    """Return a token as an operator hands it on: one word, with a checksum against mistyping."""
    data = encode(token)
    return TOKEN_PREFIX + base64.urlsafe_b64encode(data + _check(data)).decode().rstrip("=")


def read_token(text: str) -> EnrolmentToken:
    """Return the token that a word is.

    Raises
    ------
    UsageError
        It is none, or was mistyped or cut.
    """
    word = text.strip()
    body = word.removeprefix(TOKEN_PREFIX)
    try:
        raw = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
        data, check = raw[:-CHECK_BYTES], raw[-CHECK_BYTES:]
        if body == word or check != _check(data):
            raise ValueError("another checksum")
        return decode(data, EnrolmentToken)
    except (ValueError, binascii.Error, InvalidRecord) as error:
        raise UsageError("not a whole enrolment token", hint=f"it is one word that begins with {TOKEN_PREFIX}") from error


def _check(data: bytes) -> bytes:
    return blake3.blake3(data, derive_key_context="refold 2026 token check").digest()[:CHECK_BYTES]


def make_request(federation: str, client: str, authority: SigningKey, new: SigningKey) -> KeyRequest:
    """Return the request for a new key: signed by who vouches for it, and by itself. The same every time."""
    body = KeyRequestBody(federation, client, new.public, authority.key_id)
    digest = key_request_digest(body)
    return KeyRequest(body, authority.sign(REQUEST_TAG, digest), new.sign(POSSESSION_TAG, digest))


def request_key(
    bus: Bus, topics: Topics, client: str, authority: SigningKey, new: SigningKey, *, clock: Clock, timeout_s: float = 60.0
) -> None:
    """Ask for a new key and return once it is enrolled; at once where it is already.

    Raises
    ------
    TryAgainError
        No answer in time. The request stays where it is, and the same call waits on.
    RefoldError
        It was refused.
    """
    heard: dict[bytes, str] = {}

    def hear(notice: ClientNotice) -> None:
        if notice.client == client and notice.key_id is not None:
            heard[notice.key_id] = notice.what

    reader = LineageReader(bus, topics, on_notice=hear)
    try:
        reader.read_to_end()
        if heard.get(new.key_id) == "enrolled":
            return
        # 2. The request.
        place = _send(bus, topics, client, make_request(topics.federation, client, authority, new), clock)
        # 3. The notice.
        _await_notice(reader, heard, new.key_id, place, clock, timeout_s)
    finally:
        reader.close()


def _send(bus: Bus, topics: Topics, client: str, request: KeyRequest, clock: Clock) -> tuple[int, int]:
    """Write a request to its client's own partition; return partition and offset."""
    key = client.encode()
    partition = partition_for(key, bus.topics()[topics.updates].partitions)
    headers = event_headers(
        "KeyRequest", source=topics.updates, subject=client, identity=request.digest.hex(), time_ms=clock.wall_ms()
    )
    with bus.producer() as producer:
        delivery = producer.send(topics.updates, encode(request), key=key, partition=partition, headers=headers)
        producer.flush()
        return partition, delivery.result(0.0)


def _await_notice(
    reader: LineageReader, heard: dict[bytes, str], key: bytes, place: tuple[int, int], clock: Clock, timeout_s: float
) -> None:
    deadline_s = clock.monotonic_s() + timeout_s
    while heard.get(key) != "enrolled":
        if _is_passed(reader, place):
            raise RefoldError(
                "the key was refused",
                key=key.hex(),
                hint="the token may be used, cancelled or out of date, or the client is kept out; the operator sees why: "
                "`refold log --type Unattributed`",
            )
        if clock.monotonic_s() > deadline_s:
            hint = "is the federation's server running? call again: the same request is not taken twice"
            raise TryAgainError(f"no answer to the request for a key within {timeout_s:g} s", hint=hint)
        reader.poll(POLL_S)


def _is_passed(reader: LineageReader, place: tuple[int, int]) -> bool:
    """Whether `rounds` covers a judgement of this place of `updates`."""
    parts = {part.partition: part for part in reader.lineage.position.updates}
    return place[0] in parts and parts[place[0]].is_judged(place[1])
