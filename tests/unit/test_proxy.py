"""The proxy that fault tests put in front of brokers: each kind of bad network is what it says."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from refold.testing import eventually
from refold.testing.proxy import HOST, TO_BROKER, TO_CLIENT, FaultProxy, Network

PATIENCE_S = 10.0


@pytest.fixture
def echo() -> Iterator[int]:
    """Yield the port of a server that sends back whatever it gets."""
    with socket.create_server((HOST, 0)) as listener:
        port = listener.getsockname()[1]

        def serve(link: socket.socket) -> None:
            with link:
                try:
                    while data := link.recv(1 << 16):
                        link.sendall(data)
                except OSError:
                    return

        def accept() -> None:
            while True:
                try:
                    link, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=serve, args=(link,), daemon=True).start()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield port
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.fixture
def proxy(echo: int) -> Iterator[FaultProxy]:
    with FaultProxy(echo, seed=7) as made:
        yield made


def connect(proxy: FaultProxy) -> socket.socket:
    link = socket.create_connection((HOST, proxy.port), PATIENCE_S)
    link.settimeout(PATIENCE_S)
    return link


def echoed(link: socket.socket, data: bytes) -> bytes:
    """Send, and return as many bytes as came back."""
    sender = threading.Thread(target=link.sendall, args=(data,))
    sender.start()
    found = b""
    while len(found) < len(data):
        part = link.recv(1 << 16)
        if not part:
            raise ConnectionError("closed")
        found += part
    sender.join()
    return found


def seconds_to_echo(link: socket.socket, data: bytes) -> float:
    began_s = time.monotonic()
    assert echoed(link, data) == data
    return time.monotonic() - began_s


def test_a_good_network_carries_every_byte(proxy: FaultProxy) -> None:
    data = bytes(range(256)) * 8192
    with connect(proxy) as link:
        assert echoed(link, data) == data
        # Counted once sent: what the last piece adds may come after the client has it.
        eventually(lambda: proxy.carried.sent == {TO_BROKER: len(data), TO_CLIENT: len(data)})
    assert (proxy.carried.connections, proxy.carried.flips) == (1, 0)


def test_delays_are_suffered_once_each_way_and_keep_the_order(proxy: FaultProxy) -> None:
    proxy.network = Network(delay_s=(0.05, 0.1))
    with connect(proxy) as link:
        assert 0.1 <= seconds_to_echo(link, bytes(range(256)) * 512) < 2.0


def test_a_thin_network_is_as_thin_as_told(proxy: FaultProxy) -> None:
    proxy.network = Network(bytes_per_s=1_000_000)
    with connect(proxy) as link:
        assert seconds_to_echo(link, bytes(200_000)) >= 0.2


@pytest.mark.parametrize("way", [TO_BROKER, TO_CLIENT])
def test_what_is_held_one_way_arrives_when_the_network_is_well(proxy: FaultProxy, way: str) -> None:
    with connect(proxy) as link:
        assert echoed(link, b"before") == b"before"
        proxy.network = Network(holds=frozenset({way}))
        link.sendall(b"held")
        link.settimeout(0.1)
        with pytest.raises(TimeoutError):
            link.recv(4)
        link.settimeout(PATIENCE_S)
        proxy.heal()
        assert link.recv(4) == b"held"


def test_a_half_open_connection_is_accepted_and_never_answered(proxy: FaultProxy) -> None:
    proxy.network = Network(silent=True)
    with connect(proxy) as link:
        link.sendall(b"hello")
        link.settimeout(0.1)
        with pytest.raises(TimeoutError):
            link.recv(1)
    assert proxy.carried.connections == 0


def test_a_reset_cuts_what_is_open_and_nothing_new(proxy: FaultProxy) -> None:
    with connect(proxy) as link:
        assert echoed(link, b"before") == b"before"
        proxy.reset()
        with pytest.raises(ConnectionResetError):
            link.recv(1)
    with connect(proxy) as link:
        assert echoed(link, b"after") == b"after"


def test_a_flapping_network_is_away_and_there_in_turns_until_it_heals(proxy: FaultProxy) -> None:
    proxy.flap(0.02, 0.02)
    eventually(lambda: gets_through(proxy), what="a connection while it is up")
    eventually(lambda: not gets_through(proxy), what="a refusal while it is down")
    proxy.heal()
    with connect(proxy) as link:
        assert echoed(link, b"well") == b"well"


def gets_through(proxy: FaultProxy) -> bool:
    try:
        with connect(proxy) as link:
            link.sendall(b"x")
            return link.recv(1) == b"x"
    except OSError:
        return False


def test_flips_change_single_bits_behind_what_is_spared(proxy: FaultProxy) -> None:
    proxy.network = Network(flip_every_bytes=20_000, flips_spare_bytes=1000)
    data = bytes(400_000)
    with connect(proxy) as link:
        found = echoed(link, data)
        assert echoed(link, b"short") == b"short"
    changed = [byte for byte in found if byte]
    # A bit may be flipped on its way there and another on the way back.
    assert 1 <= sum(byte.bit_count() for byte in changed) <= proxy.carried.flips
    assert found[:1000] == data[:1000]


def test_nobody_behind_it_is_a_refusal(proxy: FaultProxy) -> None:
    with socket.create_server((HOST, 0)) as unused:
        port = unused.getsockname()[1]
    with FaultProxy(port) as nowhere:
        # The reset may come before the connection is even made here.
        with pytest.raises(ConnectionError), connect(nowhere) as link:
            link.recv(1)
        eventually(lambda: nowhere.carried.refused == 1)
