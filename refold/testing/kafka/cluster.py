"""A real Kafka cluster of one or three nodes on the loopback, whose nodes can be killed, frozen and started again."""

from __future__ import annotations

import base64
import contextlib
import json
import random
import socket
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

from refold.schemas.errors import BusError, ConfigurationError, UsageError
from refold.testing.kafka.guard import Guard
from refold.testing.kafka.jars import class_archive, one_at_a_time
from refold.testing.kafka.nodes import LOG_LINES, READ, RECORD, Node, open_gate
from refold.testing.kafka.probe import brokers_known_to
from refold.testing.kafka.runtime import JavaRuntime, Runtime, find_runtime
from refold.testing.kafka.secured import CERTIFICATE, Secured
from refold.testing.kafka.settings import CONTROLLER, EXTERNAL, INTERNAL, shared_settings

HOST = "127.0.0.1"
START_TIMEOUT_S = 120.0
PORTS = range(10_000, 30_000)
"""Below those that systems hand out to outgoing connections: one of those could take a node's port while the node is down."""


class Cluster:
    """A cluster that runs from `open` to `close`, or inside ``with``.

    Killed with the process that opened it, whatever ends that: a guard of its own process sees to it.

    Parameters
    ----------
    nodes
        1, or 3: each broker and controller.
    port
        The first node's, for clients; the others' follow. Free ones are chosen if None.
    data
        A folder that keeps the cluster's data, and in which a later one of as many nodes goes on; a temporary one if None.
    settings
        Broker settings beside or in place of the shared ones.
    advertised
        Loopback ports that clients are told in place of nodes' own, by node: a proxy's. Brokers do not use them.
    secured
        What makes it ask who is calling; if None, it takes whom it hears. Needs Java.
    runtime
        What nodes are made with; found if None.

    Raises
    ------
    ConfigurationError
        No broker can be started here, or `data` is another cluster's.
    BusError
        A node ended or did not answer in time; the message ends with its log.
    """

    def __init__(
        self,
        nodes: int = 1,
        *,
        port: int | None = None,
        data: str | Path | None = None,
        settings: Mapping[str, str] | None = None,
        advertised: Mapping[int, int] | None = None,
        secured: Secured | None = None,
        runtime: Runtime | None = None,
    ) -> None:
        if nodes not in (1, 3):
            raise UsageError(f"a cluster of {nodes} nodes", hint="1, or 3: the fewest of which one can be lost")
        self.ids = tuple(range(1, nodes + 1))
        own = [port + i for i in range(nodes)] if port is not None else []
        self.secured = secured
        more = list(secured.listeners) if secured else []
        free = free_ports((3 + len(more)) * nodes, but=own)
        self.ports = dict(zip(self.ids, own or free[2 * nodes :], strict=False))
        self.advertised = {**self.ports, **(advertised or {})}
        self._internal = dict(zip(self.ids, free, strict=False))
        self._controllers = dict(zip(self.ids, free[nodes:], strict=False))
        self._more = {name: dict(zip(self.ids, free[(3 + at) * nodes :], strict=False)) for at, name in enumerate(more)}
        self._settings = dict(settings or {})
        self._data = None if data is None else Path(data).resolve()
        self._runtime = runtime
        self._nodes: dict[int, Node] = {}
        self._frozen: set[int] = set()
        self._guard: Guard | None = None

    @property
    def bootstrap(self) -> str:
        """``HOST:PORT`` of every node, as clients are told them, with commas between."""
        return ",".join(f"{HOST}:{self.advertised[node]}" for node in self.ids)

    @property
    def url(self) -> str:
        """A bus URL without the federation's name."""
        return f"kafka://{self.bootstrap}"

    @property
    def inner_url(self) -> str:
        """The same cluster as its brokers see it: for who looks on while a proxy troubles those who use `url`."""
        return "kafka://" + ",".join(f"{HOST}:{self._internal[node]}" for node in self.ids)

    @property
    def certificate_url(self) -> str:
        """The same for those who have a client's certificate in place of an account."""
        return f"kafka://{','.join(f'{HOST}:{port}' for port in self._more[CERTIFICATE].values())}"

    def port_of(self, listener: str, node: int = 1) -> int:
        """Return the port of one of `Secured.listeners`."""
        return self._more[listener][node]

    def settings(self, node: int, folder: Path) -> dict[str, str]:
        """Return everything that a node is told; `folder` is for its data."""
        listeners = {EXTERNAL: self.ports, INTERNAL: self._internal, CONTROLLER: self._controllers, **self._more}
        told = {EXTERNAL: self.advertised, INTERNAL: self._internal, **self._more}
        return {
            **shared_settings(len(self.ids)),
            "node.id": str(node),
            "listeners": ",".join(f"{name}://{HOST}:{ports[node]}" for name, ports in listeners.items()),
            "advertised.listeners": ",".join(f"{name}://{HOST}:{ports[node]}" for name, ports in told.items()),
            "controller.quorum.voters": ",".join(f"{each}@{HOST}:{self._controllers[each]}" for each in self.ids),
            "log.dirs": str(folder),
            **(self.secured.settings() if self.secured else {}),
            **self._settings,
        }

    def open(self) -> Self:
        """Format what is new, start all nodes and return once each knows of all."""
        if self._guard is not None:
            raise UsageError("the cluster is open")
        runtime = self._runtime or _with_archive(find_runtime())
        if self.secured and not isinstance(runtime, JavaRuntime):
            raise ConfigurationError("accounts are made with Kafka's own tools", hint="install Java and Maven")
        self._guard = Guard()
        try:
            folder = self._folder(runtime)
            cluster_id = _cluster_id(folder, len(self.ids))
            for node in self.ids:
                own = folder / f"node-{node}"
                told, accounts = self.settings(node, own / "data"), self.secured.scram() if self.secured else []
                self._nodes[node] = runtime.node(own, cluster_id, told, accounts)
            self._format()
            for node in self.ids:
                self._begin(node)
            self._wait_until_ready()
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        """Stop all nodes together and remove what was temporary. Again is no harm."""
        if self._guard is None:
            return
        for node in tuple(self._frozen):
            self.thaw(node)
        running = [node for node in self.ids if node in self._nodes and self._nodes[node].is_running()]
        # All before any is waited for: alone, the last would wait for a quorum that is gone.
        for node in running:
            self._nodes[node].terminate() if self._data else self._nodes[node].kill()
        for node in running:
            self._nodes[node].wait()
            self._guard.forget(f"node {node}")
        for made in self._nodes.values():
            made.remove()
        self._nodes.clear()
        self._guard.close()
        self._guard = None

    def kill(self, node: int) -> None:
        """End a node with SIGKILL."""
        self._nodes[node].kill()
        self._ended(node)

    def stop(self, node: int) -> None:
        """Let a node shut down in order: its partitions are led elsewhere before it goes."""
        self._nodes[node].terminate()
        self._nodes[node].wait()
        self._ended(node)

    def start(self, node: int) -> None:
        """Start a node again with the data it had, and return once every running node knows of it.

        One that was killed is let in again only when the session of its former life is over: `broker.session.timeout.ms`, 9 s.
        """
        if self._nodes[node].is_running():
            raise UsageError(f"node {node} is running")
        self._begin(node)
        self._wait_until_ready()

    def freeze(self, node: int) -> None:
        """Stop a node in its tracks: its connections stay open, and nothing is answered."""
        self._nodes[node].freeze()
        self._frozen.add(node)

    def thaw(self, node: int) -> None:
        """Let a frozen node go on."""
        self._nodes[node].thaw()
        self._frozen.discard(node)

    def restore(self) -> None:
        """Thaw the nodes that are frozen and start those that are down."""
        for node in tuple(self._frozen):
            self.thaw(node)
        for node in self.ids:
            if not self._nodes[node].is_running():
                self._begin(node)
        self._wait_until_ready()

    def log(self, node: int) -> str:
        """Return all that a node has written to its log since the cluster was made."""
        return self._nodes[node].log()

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def _promises(self) -> Guard:
        assert self._guard is not None, "the cluster is not open"
        return self._guard

    def _folder(self, runtime: Runtime) -> Path:
        if self._data is None:
            folder = Path(tempfile.gettempdir(), f"refold-kafka-{uuid.uuid4().hex[:12]}")
            self._promises.promise("folder", {"remove": str(folder)})
            folder.mkdir(mode=0o700)
            return folder
        if not runtime.keeps_data:
            raise ConfigurationError(
                "a container's data goes with it", hint="leave out the data folder, or install Java and Maven"
            )
        self._data.mkdir(parents=True, exist_ok=True)
        return self._data

    def _format(self) -> None:
        """Format all at once: each takes a Java start."""
        at_work = {node: work for node in self.ids if (work := self._nodes[node].format()) is not None}
        for node, work in at_work.items():
            self._promises.promise(f"format {node}", {"kill": work.pid})
            open_gate(work)
        for node, work in at_work.items():
            status = work.wait(START_TIMEOUT_S)
            self._promises.forget(f"format {node}")
            if status != 0:
                raise self._failure(node, "could not be formatted")

    def _begin(self, node: int) -> None:
        begun = self._nodes[node].begin()
        self._promises.promise(f"node {node}", self._nodes[node].deed)
        open_gate(begun)

    def _ended(self, node: int) -> None:
        self._frozen.discard(node)
        self._promises.forget(f"node {node}")

    def _wait_until_ready(self) -> None:
        """Return once every node that runs names all of those that run."""
        awake = {node for node in self.ids if self._nodes[node].is_running() and node not in self._frozen}
        deadline_s = time.monotonic() + START_TIMEOUT_S
        ports = self._more[CERTIFICATE] if self.secured else self.ports
        context = self.secured.context() if self.secured else None
        for node in awake:
            while not brokers_known_to(ports[node], context=context) >= awake:
                if not self._nodes[node].is_running():
                    raise self._failure(node, "ended")
                if time.monotonic() > deadline_s:
                    raise self._failure(node, f"did not answer within {START_TIMEOUT_S:g} s")
                time.sleep(0.02)

    def _failure(self, node: int, what: str) -> BusError:
        last = "\n".join(self.log(node).splitlines()[-LOG_LINES:])
        return BusError(f"Kafka node {node} {what}; its log ends:\n{last}\n", hint="is a port taken, or the disk full?")


def free_ports(count: int, *, but: Sequence[int] = ()) -> list[int]:
    """Return loopback ports that nobody listens on now, drawn by chance so that clusters that start together do not meet."""
    found: list[int] = []
    for port in random.SystemRandom().sample(PORTS, len(PORTS)):
        if len(found) == count:
            break
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((HOST, port))
            found += [] if port in but else [port]
    return found


def _cluster_id(folder: Path, nodes: int) -> str:
    """Return the id in the folder, after making one: 22 characters of base64 for URLs, the first not a dash."""
    path = folder / "cluster.json"
    if path.exists():
        kept = json.loads(path.read_text())
        if kept["nodes"] != nodes:
            raise ConfigurationError(f"the folder holds a cluster of {kept['nodes']} nodes", path=folder, hint="start as many")
        return str(kept["id"])
    id_ = "R" + base64.urlsafe_b64encode(uuid.uuid4().bytes).decode()[1:22]
    path.write_text(json.dumps({"id": id_, "nodes": nodes}))
    return id_


def _with_archive(runtime: Runtime) -> Runtime:
    """Return Java with its archive of classes, made at the first start of all: by a node that starts and shuts down."""
    if not isinstance(runtime, JavaRuntime):
        return runtime
    archive = class_archive(runtime.java)
    if not archive.exists():
        with one_at_a_time(archive):
            if not archive.exists():
                _make_archive(runtime, archive)
    # An empty one says that this Java could make none.
    return replace(runtime, archive=f"{READ}{archive}") if archive.stat().st_size else runtime


def _make_archive(runtime: JavaRuntime, archive: Path) -> None:
    part = archive.with_suffix(".part")
    with Cluster(runtime=replace(runtime, archive=f"{RECORD}{part}")) as cluster:
        cluster.stop(1)
    if not part.exists():
        part.touch()
    part.rename(archive)
