"""How a socket to a broker is opened, read and written, where kafka-python 3.0.12 does it badly.

- It waits for ever for the end of a TLS handshake, and leaves the socket open when that fails.
- What a broker said just before it hung up is thrown away: why it refuses an account or a certificate, for one.
- It reads 4 KiB at a time, which costs a third of its speed.
- TLS takes 16 KiB at a time, and each time all that is left of a batch is copied.
"""

from __future__ import annotations

import ssl
import warnings
from collections import deque
from collections.abc import Iterable
from typing import Any

with warnings.catch_warnings():
    # As in `_kafka_errors`.
    warnings.simplefilter("ignore", DeprecationWarning)
    import kafka.errors
    from kafka.net.inet import create_connection
    from kafka.net.transport import KafkaSSLTransport, KafkaTCPTransport

READ_BYTES = 64 << 10
_LATER = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


async def open_transport(net: Any, node: Any, options: Any, context: Any, timeout_at: float | None) -> Any:
    """Return kafka-python's transport to a broker, with its TLS handshake done if there is a `context`.

    Raises
    ------
    KafkaError
        There is no connection, or its handshake failed, or did not end in time.
    """
    sock = await create_connection(net, node.host, node.port, options, timeout_at=timeout_at)
    try:
        if context is None:
            transport = KafkaTCPTransport(net, sock, host=node.host)
        else:
            transport = KafkaSSLTransport(net, sock, host=node.host, ssl_context=context)
            sock = transport._sock
            await _shake_hands(net, sock, timeout_at)
    except BaseException:
        sock.close()
        raise
    transport._sock_recv = lambda: receive(transport._sock)
    transport._write_buffer = Views()
    return transport


async def _shake_hands(net: Any, sock: ssl.SSLSocket, timeout_at: float | None) -> None:
    while True:
        try:
            sock.do_handshake()
            return
        except ssl.SSLWantReadError:
            await net.wait_read(sock, timeout_at)
        except ssl.SSLWantWriteError:
            await net.wait_write(sock, timeout_at)
        except OSError as error:
            raise kafka.errors.KafkaConnectionError(f"Handshake failed: {error}") from error


def receive(sock: Any) -> tuple[bytes, BaseException | None]:
    """Return what can be read now, and what ended the connection if nothing else came: after data, the next call tells."""
    parts: list[bytes] = []
    while True:
        try:
            part = sock.recv(READ_BYTES)
        except _LATER:
            return b"".join(parts), None
        except Exception as error:
            return b"".join(parts), None if parts else kafka.errors.KafkaConnectionError(error)
        if not part:
            return b"".join(parts), None if parts else kafka.errors.KafkaConnectionError("socket disconnected")
        parts.append(part)


class Views(deque[Any]):
    """What waits to be written, cut off without copying."""

    def append(self, data: Any) -> None:
        """Put data at the end."""
        super().append(memoryview(data))

    def extend(self, many: Iterable[Any]) -> None:
        """Put several at the end."""
        super().extend(memoryview(data) for data in many)
