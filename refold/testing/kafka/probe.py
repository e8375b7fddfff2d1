"""Which brokers a node knows of, asked in Kafka's own protocol over a plain socket: no client library takes part.

Source: Apache Kafka protocol guide, Metadata version 1, request header version 1.
"""

from __future__ import annotations

import socket
import ssl
import struct

METADATA, VERSION = 3, 1
_NO_TOPICS = struct.pack(">i", 0)
_MOST_BYTES = 1 << 20


def brokers_known_to(port: int, *, context: ssl.SSLContext | None = None, timeout_s: float = 1.0) -> frozenset[int]:
    """Return the ids of the brokers that the node on this loopback port holds for alive; empty if it does not answer."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout_s) as plain, _secured(plain, context) as link:
            client = b"refold-probe"
            body = struct.pack(">hhih", METADATA, VERSION, 1, len(client)) + client + _NO_TOPICS
            link.sendall(struct.pack(">i", len(body)) + body)
            return _broker_ids(_answer(link))
    except (OSError, struct.error, ValueError):
        return frozenset()


def _secured(link: socket.socket, context: ssl.SSLContext | None) -> socket.socket:
    return link if context is None else context.wrap_socket(link, server_hostname="127.0.0.1")


def _answer(link: socket.socket) -> bytes:
    (size,) = struct.unpack(">i", _exactly(link, 4))
    if not 8 <= size <= _MOST_BYTES:
        raise ValueError("this is no Kafka answer")
    return _exactly(link, size)


def _exactly(link: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = link.recv(count - len(data))
        if not part:
            raise ConnectionError("the node hung up")
        data += part
    return data


def _broker_ids(answer: bytes) -> frozenset[int]:
    """Read node id, host, port and rack of each broker, of which only the id is kept."""
    _, count = struct.unpack_from(">ii", answer)
    at, found = 8, []
    for _ in range(count):
        node, host_size = struct.unpack_from(">ih", answer, at)
        at += 6 + host_size + 4
        (rack_size,) = struct.unpack_from(">h", answer, at)
        at += 2 + max(0, rack_size)
        found.append(node)
    return frozenset(found)
