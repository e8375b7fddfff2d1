"""A replica: follows the log, keeps the newest model, and gives it to local readers, with a client's rights and no more.

Readers get a whole model or none: the file is replaced at once, and over HTTP each answer is one round's. What is given was
rebuilt from the log and has its digest.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self

from refold.bus.clock import SystemClock
from refold.federation import Federation
from refold.producers.held_digest import Held, difference
from refold.producers.history import History
from refold.schemas.errors import BusError, ConfigurationError, NotFoundError, TryAgainError
from refold.state.model_state import ModelState

log = logging.getLogger("refold.replica")

FRESH_S = 10.0
"""A replica that did not reach the log for longer is not ready."""
BACK_OFF_S = 1.0


@dataclass(frozen=True, slots=True)
class Model:
    """One round's parameters as readers get them.

    Parameters
    ----------
    digest
        Of the parameters, in hexadecimal: the same in every replica and in the log.
    data
        safetensors.
    """

    federation: str
    round: int
    digest: str
    data: bytes


class Replica:
    """Keeps the newest round's model.

    Parameters
    ----------
    path
        A safetensors file that always holds the newest model.
    """

    def __init__(self, federation: Federation, *, path: str | Path | None = None) -> None:
        self._federation = federation
        self._path = Path(path) if path is not None else None
        self._history = History(federation.bus, federation.topics, slots=False)
        self._state: ModelState | None = None
        self._held: Held | None = None
        self._seen_s = float("-inf")
        self.model: Model | None = None
        """The newest model; replaced whole, so that a reader in another thread holds one round's."""

    @property
    def has_ended(self) -> bool:
        """Whether the federation has ended."""
        return self._history.lineage.ended is not None

    @property
    def is_ready(self) -> bool:
        """Whether the model is the newest round's, as of a moment ago."""
        is_fresh = time.monotonic() - self._seen_s < FRESH_S
        return is_fresh and self.model is not None and self.model.round == self._history.lineage.head

    def follow(self, timeout_s: float) -> bool:
        """Wait at most so long for rounds, and take the newest; return whether there was a new one.

        Raises
        ------
        BusError, TryAgainError
            The bus does not answer; nothing is lost.
        IntegrityError
            The log, or what it leads to, is not what its digests say.
        """
        self._history.rounds.poll(timeout_s)
        lineage = self._history.refresh()
        self._seen_s = time.monotonic()
        self._mend()
        if lineage.opened is None or (self.model is not None and self.model.round == lineage.head):
            return False
        held, self._state, self._held = self._state, None, None
        try:
            state = self._history.rebuild(lineage.head, held=held, slots=False)
        except NotFoundError:
            return False  # The genesis snapshot is still being written.
        self._publish(state)
        return True

    def _mend(self) -> None:
        """Let go of a model that changed in memory, so that the newest round is made anew and published again."""
        held, state = self._held, self._state
        if held is None or state is None or held.digest() == (self._history.lineage.parameters_digest(state.round) or b""):
            return
        self._state = self._held = self.model = None
        where = difference(state, self._history.rebuild(state.round, slots=False))
        log.warning("the model of round %d in memory is not the log's; it is made anew: %s", state.round, where)

    def _publish(self, state: ModelState) -> None:
        found = state.parameters_digest
        self._held = Held(state, found, SystemClock())
        digest = found.hex()
        if self._path is not None:
            state.safetensors(self._path)
        self.model = Model(self._federation.name, state.round, digest, state.to_safetensors())
        self._state = state

    def run(
        self,
        stop: threading.Event,
        *,
        until_end: bool = False,
        told: Callable[[Model], object] = lambda model: None,
        meanwhile: Callable[[], object] = lambda: None,
    ) -> None:
        """Follow until told to stop, or until the federation has ended; a bus that does not answer is tried again.

        Parameters
        ----------
        told
            Called with every new model.
        meanwhile
            Called between looks; what it raises ends the run.
        """
        while not stop.is_set():
            meanwhile()
            try:
                if self.follow(0.25) and self.model is not None:
                    told(self.model)
                if until_end and self.has_ended and self.is_ready:
                    return
            except (BusError, TryAgainError) as error:
                log.warning("the bus does not answer, trying on: %s", error)
                stop.wait(BACK_OFF_S)

    def close(self) -> None:
        """Let go of the readers."""
        self._history.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class ReplicaServer:
    """Gives a replica's model over HTTP, from threads of its own. Use as a context manager.

    ``/model`` is the newest model as safetensors, with its digest as ``ETag``: who sends it back in ``If-None-Match`` gets 304
    while there is nothing newer. ``/round`` says round and digest as JSON, ``/livez`` that the process lives, ``/readyz``
    whether the model is the newest.

    Raises
    ------
    ConfigurationError
        The address is taken, or not this machine's.
    """

    def __init__(self, replica: Replica, host: str, port: int) -> None:
        handler = type("Handler", (_Handler,), {"replica": replica})
        try:
            self._http = ThreadingHTTPServer((host, port), handler)
        except OSError as error:
            raise ConfigurationError(f"nothing can be served at {host}:{port}: {error}", hint="choose another port") from error
        self._http.daemon_threads = True
        self.port = int(self._http.server_port)
        self._thread = threading.Thread(target=self._http.serve_forever, name="refold-replica-http", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    replica: Replica
    timeout = 30.0
    protocol_version = "HTTP/1.1"
    server_version = "refold"
    sys_version = ""

    def do_GET(self) -> None:
        """Answer."""
        model = self.replica.model
        match self.path.partition("?")[0]:
            case "/livez":
                self._say(HTTPStatus.OK, b"alive\n")
            case "/readyz":
                ready = self.replica.is_ready
                self._say(HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE, b"ready\n" if ready else b"not ready\n")
            case "/model" | "/round" if model is None:
                self._say(HTTPStatus.SERVICE_UNAVAILABLE, b"there is no model yet\n")
            case "/model" if model is not None:
                self._give(model)
            case "/round" if model is not None:
                told = {"federation": model.federation, "round": model.round, "parameters": model.digest}
                self._say(HTTPStatus.OK, json.dumps(told).encode() + b"\n", kind="application/json")
            case _:
                self._say(HTTPStatus.NOT_FOUND, b"there are /model, /round, /livez and /readyz\n")

    do_HEAD = do_GET  # noqa: N815 -- the name is http.server's

    def _give(self, model: Model) -> None:
        etag = f'"{model.digest}"'
        about = {"ETag": etag, "X-Refold-Round": str(model.round), "Cache-Control": "no-cache"}
        asked = [tag.strip().removeprefix("W/") for tag in self.headers.get("If-None-Match", "").split(",")]
        if etag in asked or "*" in asked:
            self._say(HTTPStatus.NOT_MODIFIED, b"", about=about)
        else:
            self._say(HTTPStatus.OK, model.data, kind="application/octet-stream", about=about)

    def _say(
        self, status: HTTPStatus, body: bytes, *, kind: str = "text/plain; charset=utf-8", about: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        for name, value in (about or {}).items():
            self.send_header(name, value)
        if status != HTTPStatus.NOT_MODIFIED:
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- the name is http.server's
        """Say nothing of single requests."""
