"""A TCP proxy whose network is as bad as told: late, thin, silent, one-way, cut, or changing bits on the way.

For one broker of a cluster: the cluster advertises the proxy's port, and `FaultProxy` carries to the broker's own::

    [port] = free_ports(1)
    with Cluster(1, advertised={1: port}) as cluster, FaultProxy(cluster.ports[1], port=port) as proxy:
        proxy.network = Network(delay_s=(0.05, 0.5))

A network that loses packets shows TCP's ends nothing but delay, since TCP sends again. So what is lost here is held back, and
goes on when the network is well again; only `flip_every_bytes` changes what arrives.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, Self

HOST = "127.0.0.1"
PIECE_BYTES = 16 << 10
MOST_PIECES = 64
"""Carried at once each way of a connection: 1 MiB; whoever sends more waits, as on a real network."""
RESET = struct.pack("ii", 1, 0)
"""Of `SO_LINGER`: a close with a reset instead of a farewell."""

TO_BROKER, TO_CLIENT = "to broker", "to client"


@dataclass(frozen=True, slots=True)
class Network:
    """How a network behaves; without arguments it is a good one.

    Parameters
    ----------
    delay_s
        Least and most time that a piece of data takes, one way; order is kept.
    bytes_per_s
        Each way, shared by all connections; None is without a bound.
    holds
        The ways on which nothing arrives: `TO_BROKER`, `TO_CLIENT` or both.
    accepts
        False refuses new connections.
    silent
        New connections are accepted and never carried anywhere: half-open ones.
    flip_every_bytes
        About how many bytes lie between two flipped bits; None flips none.
    flips_spare_bytes
        So many bytes at the beginning of each piece are left alone, and with them short questions and answers, which in Kafka's
        protocol have no checksum; what is left are records.
    """

    delay_s: tuple[float, float] = (0.0, 0.0)
    bytes_per_s: float | None = None
    holds: frozenset[str] = frozenset()
    accepts: bool = True
    silent: bool = False
    flip_every_bytes: int | None = None
    flips_spare_bytes: int = 0


@dataclass(slots=True)
class Carried:
    """What a proxy did: connections carried, refused and reset, bytes each way, bits flipped."""

    connections: int = 0
    refused: int = 0
    resets: int = 0
    flips: int = 0
    sent: dict[str, int] = field(default_factory=lambda: {TO_BROKER: 0, TO_CLIENT: 0})


class FaultProxy:
    """Carries connections from a port of its own to another one on the loopback. Use as a context manager.

    `network` may be assigned at any time and counts from then on, for connections that are open too.

    Parameters
    ----------
    target_port
        Where to; nobody need listen there, and who connects meanwhile is refused.
    port
        Where from; a free one if 0.
    seed
        Of delays and flips.
    """

    def __init__(self, target_port: int, *, port: int = 0, seed: int = 0) -> None:
        self.network = Network()
        self.carried = Carried()
        self._target_port = target_port
        self._chance = random.Random(seed)
        self._links: set[_Link] = set()
        self._free_at = {TO_BROKER: 0.0, TO_CLIENT: 0.0}
        self._loop = asyncio.new_event_loop()
        self._listener = socket.create_server((HOST, port), backlog=128)
        self.port = int(self._listener.getsockname()[1])
        self._flapping: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"refold-proxy-{self.port}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._server = self._do(asyncio.start_server(self._accept, sock=self._listener))
        return self

    def __exit__(self, *exc: object) -> None:
        self._do(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def heal(self) -> None:
        """Make the network a good one."""
        self._do(self._stop_flapping())
        self.network = Network()

    def reset(self) -> None:
        """Cut every connection that is open, with a reset."""
        self._do(self._reset())

    def flap(self, up_s: float, down_s: float) -> None:
        """Until `heal`, let the network be there and away in turns; connections are reset when it goes."""
        self._do(self._start_flapping(up_s, down_s))

    # -- in the proxy's own thread from here on ------------------------------------------------------------------------------

    def _do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10.0)

    async def _end(self) -> None:
        await self._stop_flapping()
        self._server.close()
        await self._reset()
        while self._links:
            await asyncio.sleep(0.001)
        await self._server.wait_closed()

    async def _reset(self) -> None:
        for link in tuple(self._links):
            link.reset()
            self.carried.resets += 1

    async def _start_flapping(self, up_s: float, down_s: float) -> None:
        await self._stop_flapping()
        self._flapping = asyncio.create_task(self._flap(up_s, down_s))

    async def _stop_flapping(self) -> None:
        flapping, self._flapping = self._flapping, None
        if flapping is not None:
            flapping.cancel()

    async def _flap(self, up_s: float, down_s: float) -> None:
        while True:
            await asyncio.sleep(up_s)
            self.network = Network(accepts=False)
            await self._reset()
            await asyncio.sleep(down_s)
            self.network = Network()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = _Link(reader, writer)
        self._links.add(link)
        try:
            await self._serve(link)
        except OSError:
            self.carried.refused += 1
        finally:
            link.reset()
            self._links.discard(link)

    async def _serve(self, link: _Link) -> None:
        if not self.network.accepts:
            self.carried.refused += 1
            return
        if self.network.silent:
            await link.cut.wait()
            return
        there = await asyncio.open_connection(HOST, self._target_port)
        link.writers.append(there[1])
        self.carried.connections += 1
        ways = [
            asyncio.create_task(self._carry(link.reader, there[1], TO_BROKER)),
            asyncio.create_task(self._carry(there[0], link.writers[0], TO_CLIENT)),
            asyncio.create_task(link.cut.wait()),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: str) -> None:
        """Carry one way of a connection until it ends; pieces under way are bounded."""
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(MOST_PIECES)
        delivering = asyncio.create_task(self._deliver(under_way, writer, way))
        due_s = 0.0
        try:
            while data := await reader.read(PIECE_BYTES):
                due_s = max(due_s, self._loop.time() + self._chance.uniform(*self.network.delay_s))
                await under_way.put((due_s, data))
            await under_way.put((due_s, b""))
            await delivering
        finally:
            delivering.cancel()

    async def _deliver(self, under_way: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter, way: str) -> None:
        while True:
            due_s, data = await under_way.get()
            await asyncio.sleep(max(0.0, due_s - self._loop.time()))
            while way in self.network.holds:
                await asyncio.sleep(0.01)
            if not data:
                return
            await self._wait_for_room(len(data), way)
            writer.write(self._perhaps_flipped(data))
            await writer.drain()
            self.carried.sent[way] += len(data)

    async def _wait_for_room(self, size_bytes: int, way: str) -> None:
        rate = self.network.bytes_per_s
        if rate is not None:
            begin_s = max(self._free_at[way], self._loop.time())
            self._free_at[way] = begin_s + size_bytes / rate
            await asyncio.sleep(self._free_at[way] - self._loop.time())

    def _perhaps_flipped(self, data: bytes) -> bytes:
        every, spared = self.network.flip_every_bytes, self.network.flips_spare_bytes
        if every is None or self._chance.random() >= (len(data) - spared) / every:
            return data
        changed = bytearray(data)
        changed[self._chance.randrange(spared, len(data))] ^= 1 << self._chance.randrange(8)
        self.carried.flips += 1
        return bytes(changed)


class _Link:
    """A connection and what it leads to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writers = [writer]
        self.cut = asyncio.Event()

    def reset(self) -> None:
        """Close both sides with a reset."""
        self.cut.set()
        for writer in self.writers:
            sock = writer.get_extra_info("socket")
            if sock is not None and not writer.transport.is_closing():
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            writer.transport.abort()
